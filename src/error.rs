//! Error: every way the library can fail, and the `Result` alias.

use std::path::{Path, PathBuf};

/// What the library returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, worded for the person who has to mend it: the thing, what was expected, what was found, the remedy.
///
/// Variants exist where a caller, an exit code or a test tells them apart.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operating-system call on a file failed.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// The verb: "open", "read", "write", "rename", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Something the user handed over (a file, a record, a number) cannot be used.
    #[error("{place}: {problem}")]
    Input {
        /// File, or `file:line`, or `file:line:column`, or the name of the thing.
        place: String,
        /// What was expected, what was found, and the remedy.
        problem: String,
    },
    /// The request itself makes no sense: unknown name, impossible combination (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// Memory or disk cannot hold what long work would take; nothing was begun.
    #[error("{0}")]
    NoRoom(String),
    /// Two models, tokenizers or layouts that must agree do not.
    #[error("{what}: {differences}")]
    Mismatch {
        /// The two things compared.
        what: String,
        /// The first differences, expected then got.
        differences: String,
    },
    /// Training or scoring produced NaN or infinity; nothing of it is kept.
    #[error("{what} is not finite ({place}); nothing was stored; lower the learning rate or check the data")]
    NotFinite {
        /// The quantity: "loss", "gradient of 'model.norm.weight'", ...
        what: String,
        /// Where: "step 12 of expert 'code'".
        place: String,
    },
    /// No pool at this path (exit code 10).
    #[error("no pool at '{}'; run 'mixpool init RECIPE.yaml' first, or name the pool with --pool", .0.display())]
    NoPool(PathBuf),
    /// Another process holds the claim (exit code 11).
    #[error("{0}")]
    Locked(String),
    /// Something in the pool does not match its own manifest or checksum (exit code 12).
    #[error("'{}' is damaged: {problem}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What does not match, and how to repair it.
        problem: String,
    },
    /// A signal asked to stop; everything finished is stored and the same command goes on (exit code 130 or 75).
    #[error("stopped by {signal}; finished work is stored, run the same command again to go on")]
    Stopped {
        /// "SIGINT", "SIGTERM" or "SIGUSR1".
        signal: &'static str,
    },
    /// A device has no room for the smallest piece of the work.
    #[error("{0}")]
    OutOfMemory(String),
    /// The tensor library refused an operation, or a GPU failed.
    #[error("{}", said(.0))]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// Attaches a path and a verb to an operating-system error: `.map_err(Error::io("open", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// Says that something handed over by the user cannot be used.
    pub fn input(place: impl std::fmt::Display, problem: impl Into<String>) -> Self {
        Self::Input { place: place.to_string(), problem: problem.into() }
    }

    /// Says that a stored file contradicts its manifest or checksum.
    pub fn damaged(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// Something of the pool that is not there is damage, whatever else can go wrong with files is not.
    pub(crate) fn missing_is_damage(self) -> Self {
        match self {
            Self::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::damaged(path, "it is missing")
            }
            other => other,
        }
    }

    /// Whether a device had no room for what was asked of it: less at a time may do.
    pub fn is_out_of_memory(&self) -> bool {
        let Self::Tensor(error) = self else { return matches!(self, Self::OutOfMemory(_)) };
        let said = error.to_string();
        ["OUT_OF_MEMORY", "ALLOC_FAILED"].iter().any(|code| said.contains(code))
    }

    /// The process exit code that stands for this failure; documented and stable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NoPool(_) => 10,
            Self::Locked(_) => 11,
            Self::Damaged { .. } => 12,
            Self::Stopped { signal: "SIGINT" } => 130,
            Self::Stopped { .. } => 75,
            _ => 1,
        }
    }
}

/// What the tensor library says, without the backtrace that it adds where `RUST_BACKTRACE` asks for one.
fn said(error: &candle_core::Error) -> String {
    let mut error = error;
    while let candle_core::Error::WithBacktrace { inner, .. } = error {
        error = inner;
    }
    let text = error.to_string();
    let inside = |name| text.strip_prefix(name).and_then(|rest: &str| rest.strip_suffix(')'));
    if let Some((code, words)) = inside("DriverError(").and_then(|inside| inside.split_once(", ")) {
        return format!("the GPU failed: {} ({code})", words.trim_matches('"'));
    }
    if let Some(code) = inside("CublasError(").or_else(|| inside("CurandError(")) {
        return format!("the GPU failed: {code}");
    }
    format!("tensor operation failed: {text}")
}

/// The known name closest to a mistyped one, for "did you mean" hints.
///
/// # Examples
/// ```
/// assert_eq!(mixpool::error::closest("wikii", ["code", "wiki"]), Some("wiki"));
/// assert_eq!(mixpool::error::closest("zzz", ["code", "wiki"]), None);
/// ```
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_a_gpu_are_said_in_one_line_whatever_they_are_wrapped_in() {
        let driver = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        let wrapped = |text: &str| {
            let inner = Box::new(candle_core::Error::Msg(text.into()));
            let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
            Error::Tensor(candle_core::Error::WithBacktrace { inner, backtrace })
        };
        let error = wrapped(driver);
        assert_eq!(error.to_string(), "the GPU failed: out of memory (CUDA_ERROR_OUT_OF_MEMORY)");
        assert!(error.is_out_of_memory());
        assert_eq!(
            wrapped("CublasError(CUBLAS_STATUS_EXECUTION_FAILED)").to_string(),
            "the GPU failed: CUBLAS_STATUS_EXECUTION_FAILED"
        );
        assert_eq!(wrapped("shapes").to_string(), "tensor operation failed: shapes");
    }
}
