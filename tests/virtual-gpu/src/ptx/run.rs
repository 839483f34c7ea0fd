//! Run of a launch: its blocks one after the other, the warps of a block in turn from barrier to barrier.

use super::access::{Device, Failed};
use super::program::Program;
use super::registers::{LANES, Registers};
use super::scope::Special;
use super::shared::Shared;
use super::warp::{Pause, Warp};
use super::{Entry, Launch};
use crate::fault::{Fault, Place};
use crate::memory::{Memory, Order};
use crate::statistics::{Counts, Statistics, Traffic};

/// Executes every block of a launch.
pub(super) fn run(
    entry: &Entry,
    launch: &Launch<'_>,
    memory: &mut Memory,
    statistics: &mut Statistics,
) -> Result<(), Fault> {
    let program = entry.program();
    let blocks: u64 = launch.grid.iter().map(|side| u64::from(*side)).product();
    let threads: u32 = launch.block.iter().product();
    let order = Order::new(memory.next_launch(), blocks);
    let mut device = Device {
        memory,
        order,
        shared: Shared::new(program.static_shared + launch.dynamic_shared as usize, program.granule),
        local: vec![0xFF; program.local * threads as usize],
        local_size: program.local,
        copies: Vec::new(),
        arguments: launch.parameters,
        counts: Counts { launches: 1, blocks, threads: blocks * u64::from(threads), ..Counts::default() },
        traffic: vec![Traffic::default(); program.steps.len()],
    };
    let mut warps: Vec<Warp> =
        (0..threads.div_ceil(LANES as u32)).map(|warp| new_warp(program, launch, warp, threads)).collect();
    for block in shuffled(blocks, launch.seed) {
        let index = split(block, launch.grid);
        begin(program, &mut warps, index);
        device.order.begin(block);
        device.shared.begin();
        device.copies.clear();
        let failed = |warp: &Warp, (lane, what): Failed| {
            let (step, thread) = warp.place(lane);
            let line = program.steps.get(step).map_or(0, |step| step.line);
            let thread = split(u64::from(thread), launch.block);
            let place = Place { kernel: entry.name.clone(), block: index, thread, line, text: entry.text(line) };
            Fault { what, place: Some(place) }
        };
        run_block(
            program,
            &mut warps,
            &mut device,
            if launch.seed == 0 { 0 } else { block.wrapping_add(launch.seed) },
            failed,
        )?;
    }
    let Device { mut counts, traffic, .. } = device;
    for (step, traffic) in program.steps.iter().zip(traffic).filter(|(_, traffic)| traffic.requests > 0) {
        *counts.lines.entry((step.line, entry.text(step.line))).or_default() += traffic;
    }
    *statistics.kernels.entry(entry.name.clone()).or_default() += counts;
    Ok(())
}

/// From barrier to barrier, until all warps have ended.
fn run_block(
    program: &Program,
    warps: &mut [Warp],
    device: &mut Device<'_>,
    seed: u64,
    failed: impl Fn(&Warp, Failed) -> Fault,
) -> Result<(), Fault> {
    let order: Vec<u64> = shuffled(warps.len() as u64, seed).collect();
    loop {
        let mut waiting = false;
        for warp in &order {
            let warp = &mut warps[*warp as usize];
            if !warp.has_ended() {
                let pause = warp.run(&program.steps, device);
                waiting |= pause.map_err(|failure| failed(warp, failure))? == Pause::Barrier;
            }
        }
        if !waiting {
            return Ok(());
        }
        device.shared.barrier();
        device.order.barrier();
    }
}

fn new_warp(program: &Program, launch: &Launch<'_>, warp: u32, threads: u32) -> Warp {
    let mut registers = program.registers.clone();
    let first = warp * LANES as u32;
    for (special, index) in &program.constants.specials {
        registers.words[*index] = std::array::from_fn(|lane| match special {
            Special::Thread(axis) => split(u64::from(first) + lane as u64, launch.block)[*axis],
            Special::Threads(axis) => launch.block[*axis],
            Special::Blocks(axis) => launch.grid[*axis],
            Special::Block(_) => 0,
            Special::Lane => lane as u32,
            Special::Warp => warp,
            Special::LanesBefore => (1 << lane) - 1,
        });
    }
    Warp::new(registers, first, threads - first)
}

fn begin(program: &Program, warps: &mut [Warp], block: [u32; 3]) {
    let set = |registers: &mut Registers| {
        for (special, index) in &program.constants.specials {
            if let Special::Block(axis) = special {
                registers.words[*index] = [block[*axis]; LANES];
            }
        }
    };
    for warp in warps {
        set(&mut warp.registers);
        warp.begin();
    }
}

/// A number as an index into sides, x first.
fn split(number: u64, sides: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = sides.map(u64::from);
    [(number % x) as u32, (number / x % y) as u32, (number / (x * y)) as u32]
}

/// The numbers below `count` in an order that a seed decides; 0 leaves them as they are.
fn shuffled(count: u64, seed: u64) -> impl Iterator<Item = u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    let mut state = seed;
    for at in (1..numbers.len()).rev().filter(|_| seed != 0) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        numbers.swap(at, (state >> 33) as usize % (at + 1));
    }
    numbers.into_iter()
}
