//! Modules: PTX that was loaded, and the functions looked up in it.

use crate::driver::status::Status;
use crate::ptx::{Entry, Module};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Bytes of shared memory that a block has without asking for more.
pub const SHARED: u32 = 48 << 10;

/// What was loaded, by handle.
#[derive(Default)]
pub struct Modules {
    parsed: BTreeMap<Arc<str>, Arc<Module>>,
    loaded: BTreeMap<u64, Loaded>,
    functions: BTreeMap<u64, Arc<Function>>,
}

struct Loaded {
    device: usize,
    module: Arc<Module>,
}

/// A kernel on a device.
pub struct Function {
    /// The device.
    pub device: usize,
    module: Arc<Module>,
    index: usize,
    owner: u64,
    /// Bytes of dynamic shared memory that it was allowed.
    pub most_shared: Mutex<u32>,
}

impl Function {
    /// Its code.
    pub fn entry(&self) -> &Entry {
        &self.module.entries()[self.index]
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.entry().name)
    }
}

impl Modules {
    /// Loads PTX for a device; `capability` is the device's and `driver` the newest CUDA that its driver knows.
    pub fn load(
        &mut self,
        handle: u64,
        device: usize,
        text: &str,
        capability: (i32, i32),
        driver: i32,
    ) -> Result<(), Status> {
        check(text, capability, driver)?;
        let module = match self.parsed.get(text) {
            Some(module) => module.clone(),
            None => self.parse(text)?,
        };
        self.loaded.insert(handle, Loaded { device, module });
        Ok(())
    }

    fn parse(&mut self, text: &str) -> Result<Arc<Module>, Status> {
        let module = Module::parse(text).map(Arc::new).map_err(|error| {
            eprintln!("virtual GPU: PTX cannot be read: {error}");
            Status::INVALID_PTX
        })?;
        self.parsed.insert(text.into(), module.clone());
        Ok(module)
    }

    /// Looks a kernel up.
    pub fn find(&mut self, function: u64, module: u64, name: &str) -> Result<(), Status> {
        let Loaded { device, module: code } = self.loaded.get(&module).ok_or(Status::INVALID_HANDLE)?;
        let index = code.entries().iter().position(|entry| entry.name == name).ok_or(Status::NOT_FOUND)?;
        let code = code.clone();
        let function_of =
            Function { device: *device, module: code, index, owner: module, most_shared: Mutex::new(SHARED) };
        self.functions.insert(function, Arc::new(function_of));
        Ok(())
    }

    /// A function by its handle; none once its module is gone.
    pub fn function(&self, handle: u64) -> Option<Arc<Function>> {
        self.functions.get(&handle).cloned()
    }

    /// Unloads a module; false when there is none.
    pub fn unload(&mut self, handle: u64) -> bool {
        self.functions.retain(|_, function| function.owner != handle);
        self.loaded.remove(&handle).is_some()
    }

    /// Unloads all of a device.
    pub fn unload_device(&mut self, device: usize) {
        self.functions.retain(|_, function| function.device != device);
        self.loaded.retain(|_, loaded| loaded.device != device);
    }
}

/// Whether a driver would compile the text for a device, by its first directives.
fn check(text: &str, capability: (i32, i32), driver: i32) -> Result<(), Status> {
    let directive = |name: &str| {
        let mut lines = text.lines().map(str::trim);
        lines
            .find_map(|line| line.strip_prefix(name))
            .map(|rest| rest.split([',', ' ']).next().unwrap_or(rest).to_owned())
    };
    let version = directive(".version ").and_then(|version| {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    let target = directive(".target sm_").and_then(|target| {
        let digits = target.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
        digits.parse::<i32>().ok()
    });
    let (Some(version), Some(target)) = (version, target) else { return Err(Status::INVALID_PTX) };
    if version > newest(driver) {
        return Err(Status::UNSUPPORTED_PTX_VERSION);
    }
    if target > capability.0 * 10 + capability.1 {
        return Err(Status::NO_BINARY_FOR_GPU);
    }
    Ok(())
}

/// The newest PTX that the driver of a CUDA reads: the table of release notes in the PTX manual.
fn newest(driver: i32) -> (i32, i32) {
    match (driver / 1000, driver % 1000 / 10) {
        (..11, _) => (6, 5),
        (11, minor) => (7, minor),
        (12, minor @ 0..=5) => (8, minor),
        (12, 6) => (8, 5),
        (12, minor) => (8, minor - 1),
        (13, minor) => (9, minor),
        _ => (i32::MAX, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "//\n.version 9.0\n.target sm_80\n.address_size 64\n";

    #[test]
    fn drivers_and_devices_that_are_too_old_refuse() {
        assert_eq!(check(TEXT, (9, 0), 13000), Ok(()));
        assert_eq!(check(TEXT, (9, 0), 12090), Err(Status::UNSUPPORTED_PTX_VERSION));
        assert_eq!(check(TEXT, (7, 5), 13000), Err(Status::NO_BINARY_FOR_GPU));
        assert_eq!(check("ELF", (9, 0), 13000), Err(Status::INVALID_PTX));
        assert_eq!(check(&TEXT.replace("9.0", "8.7").replace("sm_80", "sm_90a"), (9, 0), 12080), Ok(()));
    }
}
