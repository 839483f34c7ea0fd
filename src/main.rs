//! Runs the command line and turns a failure into one line on stderr and an exit code.

/// Kernels allocate and free large blocks all the time; mimalloc keeps them instead of returning them to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    mixpool::cli::main()
}
