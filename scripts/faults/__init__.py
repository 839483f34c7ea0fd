"""Faults: what scripts/fault-test and scripts/soak do to mixpool, a module for each kind."""
