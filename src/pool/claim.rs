//! Claim: the right of one process to a piece of work, over as soon as that process is.
//!
//! A claim is a file `work/<id>.claim` that says who holds it. On a file system of this host it is locked (`flock`), and the
//! lock is the truth: it ends with its process. Where locks do not work, or may hold on one host only, the file itself is a
//! lease: made by exclusive creation, renewed by a heart-beat (its time of change), over when its process of this host is
//! gone or when it was not renewed for as long as a lease lasts. Who takes over makes the next generation,
//! `work/<id>.<n>.claim`, which only one can create. Either kind heeds the other's, so hosts may mix.

use super::Pool;
use crate::error::{Error, Result};
use crate::files::{self, Process};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// How long a claim is left alone that is not renewed and whose process cannot be looked up.
const LEASE: Duration = Duration::from_mins(2);
/// Heart-beats in a lease.
const BEATS: u32 = 6;
/// Seconds of a lease; set, all claims are leases. For tests, and for file systems that are not known to need it.
const VARIABLE: &str = "MIXPOOL_LEASE";
/// `ENOLCK` of Linux: no locks available.
const NO_LOCKS: i32 = 37;

/// How processes that share a pool keep out of each other's way.
#[derive(Debug)]
pub(super) struct Sharing {
    lease: Duration,
    by_lease: AtomicBool,
    why: String,
}

impl Sharing {
    /// What the pool's file system allows.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let kind = files::shared_kind(root);
        let Ok(seconds) = std::env::var(VARIABLE) else {
            let why = kind.unwrap_or("this file system").to_owned();
            return Ok(Self { lease: LEASE, by_lease: AtomicBool::new(kind.is_some()), why });
        };
        let lease = seconds.parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
        let refuse = || Error::Usage(format!("{VARIABLE}='{seconds}': expected the seconds of a lease"));
        let lease = lease.filter(|lease| !lease.is_zero()).ok_or_else(refuse)?;
        Ok(Self { lease, by_lease: AtomicBool::new(true), why: format!("{VARIABLE} is set: the file system") })
    }

    /// Whether locks cannot be trusted here.
    pub(super) fn is_by_lease(&self) -> bool {
        self.by_lease.load(Ordering::Relaxed)
    }

    fn note(&self) -> String {
        let Self { lease, why, .. } = self;
        format!(
            "{why} may have no locks that hold between hosts: claims are leases of {} s, and every process keeps a score \
             log of its own",
            lease.as_secs_f64()
        )
    }
}

/// What became of an attempt to claim.
pub(super) enum Claimed {
    /// This process has it.
    Ours(Claim),
    /// Another has, in words.
    Theirs(String),
}

/// A claim of this process; dropped, it is released.
pub(super) struct Claim {
    path: PathBuf,
    file: File,
    pulse: Arc<(Mutex<bool>, Condvar)>, // whether to stop
    heart: Option<JoinHandle<()>>,
}

impl Pool {
    /// One line about file systems without locks that hold between hosts; none where locks work.
    pub fn sharing(&self) -> Option<String> {
        self.sharing.is_by_lease().then(|| self.sharing.note())
    }

    /// Claims a piece of work called `name` by people.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it.
    pub(super) fn claim(&self, id: &str, name: &str) -> Result<Claim> {
        match self.try_claim(id)? {
            Claimed::Ours(claim) => Ok(claim),
            Claimed::Theirs(owner) => Err(Error::Locked(format!(
                "'{name}' is being trained by another process{owner}; wait for it, then run this again"
            ))),
        }
    }

    /// Claims a piece of work unless another process has it.
    pub(super) fn try_claim(&self, id: &str) -> Result<Claimed> {
        let work = self.root.join("work");
        if !self.sharing.is_by_lease() {
            match by_lock(&work, id, &self.sharing)? {
                Some(claimed) => return Ok(claimed),
                None => self.sharing.by_lease.store(true, Ordering::Relaxed), // the file system knows no locks
            }
        }
        by_lease(&work, id, &self.sharing)
    }
}

impl Pool {
    /// Whether a live process, this one or another, has claimed a piece of work.
    pub(super) fn is_held(&self, id: &str) -> Result<bool> {
        let work = self.root.join("work");
        for (_, path) in generations(&work, id)? {
            let Ok(file) = File::open(&path) else { continue };
            if !self.sharing.is_by_lease() && matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                return Ok(true);
            }
            let owner = owner(&file);
            let is_told_by_lock =
                !self.sharing.is_by_lease() && owner.as_ref().is_none_or(|owner| owner.is_alive().is_some());
            if !is_told_by_lock && is_live(&file, owner.as_ref(), files::clock(&work)?, self.sharing.lease) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Claim {
    fn new(path: PathBuf, file: File, sharing: &Sharing) -> Result<Self> {
        let content = files::to_json(&Process::this())?;
        file.set_len(0).and_then(|()| file.write_all_at(&content, 0)).map_err(Error::io("write", &path))?;
        let pulse = Arc::new((Mutex::new(false), Condvar::new()));
        let beaten = file.try_clone().map_err(Error::io("open", &path))?;
        let (stop, every) = (Arc::clone(&pulse), sharing.lease / BEATS);
        let beat = move || {
            let (stopped, wake) = &*stop;
            let mut done = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*done {
                let (now, waited) = wake.wait_timeout(done, every).unwrap_or_else(PoisonError::into_inner);
                done = now;
                if waited.timed_out() && !*done {
                    // The same bytes: what counts is the time of the change. A beat that fails is missed, no more.
                    let _ = beaten.write_all_at(&content, 0).and_then(|()| beaten.sync_data());
                }
            }
        };
        let heart = std::thread::Builder::new().name("claim".into()).spawn(beat);
        let heart = Some(heart.map_err(Error::io("renew", &path))?);
        Ok(Self { path, file, pulse, heart })
    }

    /// Refuses to go on with a claim that another process took over.
    ///
    /// # Errors
    /// [`Error::Locked`] when this process was taken for dead, because it slept for longer than a lease.
    pub(super) fn check(&self) -> Result<()> {
        if is_same(&self.file, &self.path)? || files::is_planted("skip-claim") {
            return Ok(());
        }
        let path = self.path.display();
        Err(Error::Locked(format!(
            "another process took '{path}' over while this one did not renew it; run this again"
        )))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.pulse.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.pulse.1.notify_all();
        let _ = self.heart.take().map(JoinHandle::join);
        if is_same(&self.file, &self.path).unwrap_or(false) {
            let _ = std::fs::remove_file(&self.path); // left behind, it is a dead process's
        }
    }
}

/// Claims by a lock; none when the file system has no locks.
fn by_lock(work: &Path, id: &str, sharing: &Sharing) -> Result<Option<Claimed>> {
    let path = generation(work, id, 0);
    loop {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(Error::io("create", &path))?;
        if files::is_planted("skip-claim") {
            return Claim::new(path, file, sharing).map(|claim| Some(Claimed::Ours(claim)));
        }
        match file.try_lock() {
            Ok(()) if !is_same(&file, &path)? => continue, // released, and removed, since it was opened
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Some(Claimed::Theirs(described(owner(&file).as_ref())))),
            Err(TryLockError::Error(error)) if knows_no_locks(&error) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        // The lock says that no process of this host has it; what others have is a lease.
        for (_, other) in generations(work, id)? {
            let Ok(lease) = File::open(&other) else { continue };
            let owner = owner(&lease).filter(|owner| owner.is_alive().is_none());
            if owner.is_some() && is_live(&lease, owner.as_ref(), files::clock(work)?, sharing.lease) {
                return Ok(Some(Claimed::Theirs(described(owner.as_ref()))));
            }
            if other != path {
                let _ = std::fs::remove_file(other); // of a dead process: the lock is ours
            }
        }
        return Claim::new(path, file, sharing).map(|claim| Some(Claimed::Ours(claim)));
    }
}

/// Claims by creating a file that only one can create.
fn by_lease(work: &Path, id: &str, sharing: &Sharing) -> Result<Claimed> {
    let held = |skip: Option<u64>| -> Result<Option<Option<Process>>> {
        for (number, path) in generations(work, id)? {
            let Ok(file) = File::open(&path) else { continue };
            let owner = owner(&file);
            if Some(number) != skip && is_live(&file, owner.as_ref(), files::clock(work)?, sharing.lease) {
                return Ok(Some(owner));
            }
        }
        Ok(None)
    };
    loop {
        let before = generations(work, id)?;
        if let Some(owner) = held(None)? {
            return Ok(Claimed::Theirs(described(owner.as_ref())));
        }
        let number = before.last().map_or(0, |(number, _)| number + 1);
        let path = generation(work, id, number);
        let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue, // another was faster
            opened => opened.map_err(Error::io("create", &path))?,
        };
        let claim = Claim::new(path, file, sharing)?;
        // Whoever looked before this one was there may have made an earlier or a later generation meanwhile.
        if let Some(owner) = held(Some(number))? {
            return Ok(Claimed::Theirs(described(owner.as_ref())));
        }
        for (_, dead) in before {
            let _ = std::fs::remove_file(dead); // of no meaning beside a later generation
        }
        return Ok(Claimed::Ours(claim));
    }
}

/// The file of a claim's generation.
fn generation(work: &Path, id: &str, number: u64) -> PathBuf {
    work.join(if number == 0 { format!("{id}.claim") } else { format!("{id}.{number}.claim") })
}

/// The generations of a claim that are there, in order.
fn generations(work: &Path, id: &str) -> Result<Vec<(u64, PathBuf)>> {
    let number = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(id)?.strip_suffix(".claim")?;
        if name.is_empty() { Some(0) } else { name.strip_prefix('.')?.parse().ok() }
    };
    let mut found: Vec<_> =
        files::list(work)?.into_iter().filter_map(|path| Some((number(&path)?, path.clone()))).collect();
    found.sort();
    Ok(found)
}

/// Whether the holder of a lease may still be at work.
fn is_live(file: &File, owner: Option<&Process>, now: SystemTime, lease: Duration) -> bool {
    let renewed = || file.metadata().and_then(|data| data.modified()).ok();
    let fresh = || renewed().is_some_and(|at| now.duration_since(at).is_ok_and(|age| age < lease) || at >= now);
    owner.and_then(Process::is_alive).unwrap_or_else(fresh)
}

fn owner(file: &File) -> Option<Process> {
    let mut bytes = vec![0; 1 << 12];
    let length = file.read_at(&mut bytes, 0).ok()?;
    serde_json::from_slice(&bytes[..length]).ok()
}

fn described(owner: Option<&Process>) -> String {
    owner.map_or_else(String::new, |Process { host, pid, .. }| format!(" ({pid} on {host})"))
}

/// Whether an open file is still the one that bears the name.
pub(super) fn is_same(file: &File, path: &Path) -> Result<bool> {
    let ours = file.metadata().map_err(Error::io("read", path))?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Whether a lock failed because there are none.
pub(super) fn knows_no_locks(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(NO_LOCKS)
}
