//! Cli: stub.
