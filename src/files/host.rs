//! Host: which machine and which space of process numbers this is, and whether a process of it still runs.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// A process, named so that others on this and on other hosts can tell whether it still runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What people call the host.
    pub host: String,
    /// What tells hosts, boots and containers apart: process numbers mean the same only within one space.
    pub space: String,
    /// The process's number.
    pub pid: u32,
    /// When it started, in ticks since the boot; tells it from a later process of the same number. 0 where unknown.
    pub started: u64,
}

impl Process {
    /// This process.
    pub fn this() -> Self {
        let pid = std::process::id();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { host, space: space().to_owned(), pid, started: started(pid).unwrap_or(0) }
    }

    /// Whether it still runs; none when this host cannot tell.
    pub fn is_alive(&self) -> Option<bool> {
        if self.space != space() || !has_processes() {
            return None;
        }
        let now = started(self.pid);
        Some(now.is_some() && (self.started == 0 || now == Some(self.started)))
    }
}

/// Eight hexadecimal digits that are the same for all processes whose numbers this process can look up.
pub(super) fn space() -> &'static str {
    static SPACE: OnceLock<String> = OnceLock::new();
    SPACE.get_or_init(|| {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let numbers = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        super::hash(format!("{host}\n{boot}\n{}", numbers.display()).as_bytes())[..8].to_owned()
    })
}

/// Whether a process of this space still runs. Where there is no `/proc`, every process counts as alive.
pub(super) fn is_alive(pid: u32) -> bool {
    !has_processes() || Path::new("/proc").join(pid.to_string()).exists()
}

fn has_processes() -> bool {
    Path::new("/proc/self").exists()
}

/// Field 22 of `/proc/PID/stat`; the second field may hold blanks and parentheses and ends at the last `)`.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_one_that_had_its_number_is_not() {
        let this = Process::this();
        assert_eq!(this.is_alive(), Some(true));
        assert!(this.started > 0);
        assert_eq!(Process { started: this.started - 1, ..this.clone() }.is_alive(), Some(false));
        assert_eq!(Process { pid: 999_999_999, ..this.clone() }.is_alive(), Some(false));
        assert_eq!(Process { space: "elsewhere".into(), ..this }.is_alive(), None);
    }
}
