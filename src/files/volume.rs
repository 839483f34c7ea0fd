//! Volume: the file system that a path lies on: of which kind, and how much room is left.

use crate::error::{Error, Result};
use std::path::Path;

/// File systems shared between hosts, by the magic numbers of Linux's statfs(2): on them, a lock may hold on one host
/// only, and what is mapped may change or vanish underneath.
const SHARED: [(u64, &str); 12] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x1983_0326, "BeeGFS"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
];

/// The name of the file system that an existing path lies on, when it is of a kind that hosts share.
pub fn shared_kind(path: &Path) -> Option<&'static str> {
    #[cfg(target_os = "linux")]
    {
        let magic = rustix::fs::statfs(path).ok()?.f_type as u64 & 0xffff_ffff;
        SHARED.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (path, SHARED);
        None
    }
}

/// Bytes that an ordinary user may still write where `path` is or will be.
pub fn room(path: &Path) -> Result<u64> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(there).map_err(std::io::Error::from).map_err(Error::io("measure", there))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
