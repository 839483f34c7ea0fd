//! Runs the command line and turns a failure into one line on stderr and an exit code.

mod allocator;

fn main() -> std::process::ExitCode {
    allocator::keep_freed_memory();
    mixpool::cli::main()
}
