//! Warp: 32 threads that execute together as far as they stand at the same instruction.
//
// Lanes that part at a branch run apart, those at the lowest step first, and join where they meet. An instruction that needs other
// lanes waits for them: where they can never come, that is a fault.

use super::access::{Device, Failed, Party};
use super::registers::{ALL, LANES, Mask, Registers, lanes};
use super::step::{Action, Step};

/// Why a warp stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Waits for the other threads of the block.
    Barrier,
    /// Every thread ended.
    End,
}

pub(super) struct Warp {
    pub(super) registers: Registers,
    /// Number of lane 0 in the block.
    first_thread: u32,
    /// Lanes that there are.
    all: Mask,
    /// Lanes that have not ended.
    live: Mask,
    /// Lanes that execute now, all at `step`.
    running: Mask,
    step: usize,
    /// Where the live lanes that do not execute now stand.
    steps: [usize; LANES],
    /// Of these, the lanes that wait for others.
    parked: Mask,
    /// The lowest step at which lanes stand that do not execute now.
    nearest: usize,
    /// How often all lanes were ordered.
    order: u32,
}

impl Warp {
    pub(super) fn new(registers: Registers, first_thread: u32, threads: u32) -> Self {
        let all = if threads >= LANES as u32 { ALL } else { (1 << threads) - 1 };
        Self {
            registers,
            first_thread,
            all,
            live: 0,
            running: 0,
            step: 0,
            steps: [0; LANES],
            parked: 0,
            nearest: usize::MAX,
            order: 0,
        }
    }

    /// Puts all lanes at the first step.
    pub(super) fn begin(&mut self) {
        (self.live, self.running, self.parked) = (self.all, self.all, 0);
        (self.step, self.nearest) = (0, usize::MAX);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.live == 0
    }

    /// The step and the thread that a failure is about.
    pub(super) fn place(&self, lane: usize) -> (usize, u32) {
        (self.step, self.first_thread + lane as u32)
    }

    /// Executes until a barrier or the end.
    pub(super) fn run(&mut self, steps: &[Step], device: &mut Device<'_>) -> Result<Pause, Failed> {
        self.order += 1;
        loop {
            let Some(step) = steps.get(self.step) else {
                return Err((0, "execution runs past the last instruction".to_owned()));
            };
            let mask = match step.guard {
                None => self.running,
                Some((index, negated)) => {
                    let holds = self.registers.predicates[index];
                    self.running & if negated { !holds } else { holds }
                }
            };
            device.counts.instructions += 1;
            device.counts.lanes += u64::from(mask.count_ones());
            if mask == 0 {
                self.advance(self.step + 1)?;
                continue;
            }
            match &step.action {
                Action::Compute(operation) => operation(&mut self.registers, mask),
                Action::Branch(target) => {
                    self.branch(*target, mask, device)?;
                    continue;
                }
                Action::Exit => {
                    self.live &= !mask;
                    self.running &= !mask;
                    if self.live == 0 {
                        return Ok(Pause::End);
                    }
                    if self.running == 0 {
                        self.regroup()?;
                        continue;
                    }
                }
                Action::Barrier => {
                    if mask != self.live {
                        self.park(mask, self.live)?;
                        continue;
                    }
                    self.step += 1;
                    device.counts.barriers += 1;
                    return Ok(Pause::Barrier);
                }
                Action::Together { run, members, orders, is_product } => {
                    let first = mask.trailing_zeros() as usize;
                    let members = members.map_or(ALL, |slot| self.registers.bits(slot)[first] as Mask);
                    if mask & !members != 0 {
                        return Err((first, format!("lanes {mask:#x} execute it, and it names {members:#x}")));
                    }
                    if mask != members {
                        self.park(mask, members)?;
                        continue;
                    }
                    run(&mut self.registers, mask).map_err(|what| (first, what))?;
                    self.order += u32::from(*orders);
                    device.counts.products += u64::from(*is_product);
                }
                Action::LoadMatrix { to, from, transposed } => {
                    if mask != ALL {
                        self.park(mask, ALL)?;
                        continue;
                    }
                    let party = self.party();
                    device.load_matrix(to, *from, *transposed, &mut self.registers, party)?;
                }
                action => self.access(action, mask, device)?,
            }
            self.advance(self.step + 1)?;
        }
    }

    fn access(&mut self, action: &Action, mask: Mask, device: &mut Device<'_>) -> Result<(), Failed> {
        let party = self.party();
        match action {
            Action::Load(transfer) => device.load(transfer, mask, &mut self.registers, party),
            Action::Store(transfer) => device.store(transfer, mask, &self.registers, party),
            Action::Argument(transfer) => device.argument(transfer, mask, &mut self.registers),
            Action::Atomic(atomic) => device.atomic(atomic, mask, &mut self.registers, party),
            Action::CopyAsync(copy) => device.copy_async(copy, mask, &self.registers, party),
            Action::WaitAsync => device.wait_async(mask, party),
            Action::Fence => {
                device.order.fence();
                Ok(())
            }
            Action::Unknown(reason) => Err((mask.trailing_zeros() as usize, reason.clone())),
            _ => Ok(()),
        }
    }

    fn party(&self) -> Party {
        Party { first_thread: self.first_thread, order: self.order, step: self.step }
    }

    /// The running lanes go on at a step, with those that stand there.
    fn advance(&mut self, step: usize) -> Result<(), Failed> {
        self.step = step;
        if step >= self.nearest { self.regroup() } else { Ok(()) }
    }

    fn branch(&mut self, target: usize, mask: Mask, device: &mut Device<'_>) -> Result<(), Failed> {
        if mask == self.running {
            return self.advance(target);
        }
        device.counts.divergences += 1;
        lanes(mask).for_each(|lane| self.steps[lane] = target);
        self.running &= !mask;
        self.step += 1;
        self.regroup()
    }

    /// The running lanes wait until all of `wanted` stand here.
    fn park(&mut self, mask: Mask, wanted: Mask) -> Result<(), Failed> {
        let missing = wanted & !mask;
        // Lanes that skip this by its predicate, have ended or are not there will not come.
        if missing & !self.live != 0 || missing & self.running != 0 {
            return Err((mask.trailing_zeros() as usize, format!("lanes {missing:#x} never come here")));
        }
        self.parked |= mask;
        self.regroup()
    }

    /// Chooses whom to run: of the lanes that wait for nobody those at the lowest step, with all who stand there.
    fn regroup(&mut self) -> Result<(), Failed> {
        lanes(self.running).for_each(|lane| self.steps[lane] = self.step);
        let lowest = |mask: Mask| lanes(mask).map(|lane| self.steps[lane]).min();
        // Where all wait, those whom others left by ending may go on; they must stand together.
        let together = || lowest(self.live).filter(|step| lanes(self.live).all(|lane| self.steps[lane] == *step));
        let Some(step) = lowest(self.live & !self.parked).or_else(together) else {
            return Err((
                self.parked.trailing_zeros() as usize,
                "its lanes wait for each other at different instructions".to_owned(),
            ));
        };
        self.step = step;
        self.running = lanes(self.live).filter(|lane| self.steps[*lane] == step).fold(0, |mask, lane| mask | 1 << lane);
        self.parked &= !self.running;
        self.nearest = lanes(self.live & !self.running).map(|lane| self.steps[lane]).min().unwrap_or(usize::MAX);
        Ok(())
    }
}
