//! Machine: the virtual GPUs of this process, what lies on them and what is queued for them.

use crate::Fault;
use crate::calls::Calls;
use crate::cublas::Handle;
use crate::driver::status::Status;
use crate::memory::{BASE, Memory, Unwritten};
use crate::modules::Modules;
use crate::pool::Pool;
use crate::queue::{Point, Queues};
use crate::report;
use crate::settings::{Schedule, Settings};
use crate::statistics::Statistics;
use crate::tally::Tally;
use crate::work::{Source, Work};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Bytes up to which a copy from pageable memory is taken along with its command.
pub const STAGED: usize = 64 << 10;
/// Steps that may wait in a machine before the first of them run.
const MOST_WAITING: usize = 1 << 14;
/// Addresses of a device for each byte it has: memory given back is not soon given out again.
const SPARE: u64 = 2;
/// Addresses between two devices.
const APART: u64 = 1 << 32;

static MACHINE: OnceLock<Mutex<Machine>> = OnceLock::new();

/// The machine, which the first call makes.
pub fn machine() -> MutexGuard<'static, Machine> {
    let machine = MACHINE.get_or_init(|| {
        report::at_exit();
        Mutex::new(Machine::new(Settings::from_environment()))
    });
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One device.
pub struct Gpu {
    /// Its memory.
    pub memory: Memory,
    /// How much of it is taken.
    pub pool: Pool,
    /// How often its primary context is held.
    pub retained: u32,
    /// What went wrong; from then on every call says so.
    pub fault: Option<Status>,
}

/// Memory that was given out.
#[derive(Debug, Clone, Copy)]
struct Allocation {
    device: usize,
    bytes: u64,
    direct: bool,
    freed: bool,
}

/// All there is.
pub struct Machine {
    /// What the environment asks for.
    pub settings: Settings,
    /// Whether `cuInit` was called.
    pub ready: bool,
    /// The devices.
    pub gpus: Vec<Gpu>,
    /// Streams and events.
    pub queues: Queues<Work>,
    /// Code, loaded.
    pub modules: Modules,
    /// What was counted.
    pub statistics: Statistics,
    /// What was called.
    pub calls: Calls,
    /// What was copied and multiplied.
    pub tally: Tally,
    /// Handles of cuBLAS.
    pub blas: BTreeMap<u64, Handle>,
    /// Handles of cuRAND.
    pub generators: BTreeSet<u64>,
    /// When timed events were passed.
    pub stamps: BTreeMap<u64, Instant>,
    allocations: BTreeMap<u64, Allocation>,
    pinned: BTreeMap<usize, usize>, // bytes by address
    handles: u64,
    random: u64,
}

impl Machine {
    /// A machine as the settings say.
    pub fn new(settings: Settings) -> Self {
        let mut base = BASE;
        let gpu = |_| {
            let memory = Memory::at(base, settings.memory.saturating_mul(SPARE));
            base = memory.end() + APART;
            Gpu { memory, pool: Pool::new(settings.memory), retained: 0, fault: None }
        };
        Self {
            ready: false,
            gpus: (0..settings.count).map(gpu).collect(),
            queues: Queues::default(),
            modules: Modules::default(),
            statistics: Statistics::default(),
            calls: Calls::new(settings.fail.clone(), settings.trace),
            tally: Tally::default(),
            blas: BTreeMap::new(),
            generators: BTreeSet::new(),
            stamps: BTreeMap::new(),
            allocations: BTreeMap::new(),
            pinned: BTreeMap::new(),
            handles: 0,
            random: if let Schedule::Drawn(seed) = settings.schedule { seed } else { 0 },
            settings,
        }
    }

    /// A number that nothing was called by before.
    pub fn handle(&mut self) -> u64 {
        self.handles += 1;
        0x5000_0000_0000 + self.handles * 16
    }

    /// Lays work in a stream, and does what the schedule says is to be done by now.
    pub fn push(&mut self, stream: u64, work: Work) {
        self.queues.push(stream, work);
        match self.settings.schedule {
            Schedule::Late if self.queues.end(stream).count.is_multiple_of(MOST_WAITING as u64) => {
                self.advance(self.queues.end(stream));
            }
            Schedule::Late => {}
            Schedule::Early => self.advance(self.queues.end(stream)),
            Schedule::Drawn(_) => self.some(),
        }
    }

    /// Does what must be done before a point is reached.
    pub fn advance(&mut self, goal: Point) {
        while !self.queues.reached(goal) {
            self.one(goal);
        }
    }

    /// Does all that is queued in a stream.
    pub fn finish(&mut self, stream: u64) -> Result<(), Status> {
        self.advance(self.queues.end(stream));
        let device = self.queues.device(stream).ok_or(Status::INVALID_HANDLE)?;
        self.gpus[device].fault.map_or(Ok(()), Err)
    }

    /// Does all that is queued for a device.
    pub fn finish_device(&mut self, device: usize) -> Result<(), Status> {
        for stream in self.queues.of_device(device) {
            self.advance(self.queues.end(stream));
        }
        let gpu = &mut self.gpus[device];
        gpu.pool.trim(gpu.pool.threshold);
        gpu.fault.map_or(Ok(()), Err)
    }

    /// Does the next piece of what must be done before a point is reached.
    pub fn one(&mut self, goal: Point) {
        if let Some((stream, work)) = self.queues.next(goal) {
            self.run(stream, work);
        }
    }

    /// Does a few pieces of work, drawn from those that could run.
    fn some(&mut self) {
        for _ in 0..self.draw(4) {
            let busy = self.queues.busy();
            let Some(stream) = busy.get(self.draw(busy.len().max(1))).copied() else { return };
            if let Some(work) = self.queues.ready(stream) {
                self.run(stream, work);
            }
        }
    }

    /// In which order a launch runs its blocks and warps; 0 is the natural one.
    pub fn seed(&mut self) -> u64 {
        if let Schedule::Drawn(_) = self.settings.schedule { self.draw(usize::MAX) as u64 } else { 0 }
    }

    /// A number below `n`: Steele, Lea and Flood's `SplitMix64` (2014).
    fn draw(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn run(&mut self, stream: u64, work: Work) {
        let Some(device) = self.queues.device(stream) else { return };
        if self.gpus[device].fault.is_some() {
            return; // nothing runs after a fault
        }
        match work {
            Work::Free(address) => drop(self.allocations.remove(&address)),
            Work::Stamp(event) => drop(self.stamps.insert(event, Instant::now())),
            _ => {}
        }
        let done = self.fetched(device, work).and_then(|work| {
            self.tally.count(&work);
            work.run(&mut self.gpus[device].memory, &mut self.statistics)
        });
        if let Err(fault) = done {
            eprintln!("virtual GPU {device}: {fault}");
            let misaligned = fault.what.contains("align");
            self.gpus[device].fault =
                Some(if misaligned { Status::MISALIGNED_ADDRESS } else { Status::ILLEGAL_ADDRESS });
        }
    }

    /// The work with the bytes that it needs of another device.
    fn fetched(&self, device: usize, work: Work) -> Result<Work, Fault> {
        match work {
            Work::Copy { to, from: (address, length), bytes: None } => {
                let owner = self.owner(address).filter(|owner| *owner != device);
                let read = |owner: usize| self.gpus[owner].memory.read(address, length, Unwritten::Refused);
                let bytes = owner.map(read).transpose()?.map(<[u8]>::to_vec);
                Ok(Work::Copy { to, from: (address, length), bytes })
            }
            work => Ok(work),
        }
    }

    /// The device on which an address lies in memory that was given out.
    fn owner(&self, address: u64) -> Option<usize> {
        let (start, allocation) = self.allocations.range(..=address).next_back()?;
        (address < start + allocation.bytes).then_some(allocation.device)
    }

    /// Memory of a device, from its pool or directly.
    pub fn allocate(&mut self, device: usize, bytes: u64, direct: bool) -> Result<u64, Status> {
        let pool = &mut self.gpus[device].pool;
        let taken = if direct { pool.take_directly(bytes) } else { pool.take(bytes) };
        if !taken {
            return Err(Status::OUT_OF_MEMORY);
        }
        let mut address = self.gpus[device].memory.allocate(bytes);
        if address.is_none() {
            self.finish_device(device)?; // what was given back, but waits in a stream
            address = self.gpus[device].memory.allocate(bytes);
        }
        let address = address.ok_or(Status::OUT_OF_MEMORY)?;
        self.allocations.insert(address, Allocation { device, bytes, direct, freed: false });
        Ok(address)
    }

    /// Takes memory out of the accounts; it stays until [`Work::Free`] runs.
    pub fn release(&mut self, address: u64) -> Result<usize, Status> {
        let allocation = self.allocations.get_mut(&address).filter(|allocation| !allocation.freed);
        let Some(Allocation { device, bytes, direct, freed }) = allocation else {
            eprintln!("virtual GPU: {address:#x} is given back, which is no allocation, or no longer");
            return Err(Status::INVALID_VALUE);
        };
        *freed = true;
        let pool = &mut self.gpus[*device].pool;
        if *direct {
            pool.give_directly(*bytes);
        } else {
            pool.give(*bytes);
        }
        Ok(*device)
    }

    /// Ends all that lives in a device's context.
    pub fn reset(&mut self, device: usize) {
        let _ = self.finish_device(device);
        self.queues.close_device(device);
        self.modules.unload_device(device);
        let left: Vec<u64> = self.allocations.iter().filter(|(_, of)| of.device == device).map(|(at, _)| *at).collect();
        for address in left {
            let _ = self.release(address);
            self.allocations.remove(&address);
            self.gpus[device].memory.free(address);
        }
        self.gpus[device].fault = None;
    }

    /// Notes memory of the host as pinned.
    pub fn pin(&mut self, address: usize, bytes: usize) {
        self.pinned.insert(address, bytes);
    }

    /// How much was pinned at an address; none when queued work still needs it or it is not pinned.
    pub fn unpin(&mut self, address: usize) -> Option<usize> {
        let bytes = *self.pinned.get(&address)?;
        let needed = |(start, length): (usize, usize)| start < address + bytes && address < start + length;
        if self.queues.waiting().filter_map(Work::host_range).any(needed) {
            eprintln!("virtual GPU: the pinned buffer at {address:#x} is given back before a copy of it ran");
            return None;
        }
        self.pinned.remove(&address)
    }

    /// Whether a range of the host's memory is pinned.
    pub fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(start, length)| address + bytes <= start + length)
    }

    /// Queues a copy from the host, whose memory is readable.
    pub fn upload(&mut self, stream: u64, to: u64, from: &[u8]) -> Result<(), Status> {
        if self.is_pinned(from.as_ptr() as usize, from.len()) {
            // SAFETY: the slice is readable now, and pinned memory is not given back while work refers to it.
            let from = unsafe { Source::pinned(from.as_ptr() as usize, from.len()) };
            self.push(stream, Work::Upload { to, from });
            return Ok(());
        }
        if from.len() > STAGED {
            self.finish(stream)?;
        }
        self.push(stream, Work::Upload { to, from: Source::Staged(from.to_vec()) });
        if from.len() > STAGED { self.finish(stream) } else { Ok(()) }
    }

    /// Copies to the host: at once, or in turn where the host's memory is pinned.
    pub fn download(&mut self, stream: u64, to: usize, from: u64, bytes: u64) -> Result<(), Status> {
        let pinned = self.is_pinned(to, bytes as usize);
        self.push(stream, Work::Download { to, from, bytes });
        if pinned { Ok(()) } else { self.finish(stream) }
    }
}
