//! Machine: what a program with a mistake in its streams, buffers or products gets from the virtual GPUs.

use virtual_gpu::driver::status::Status;
use virtual_gpu::machine::{Machine, STAGED};
use virtual_gpu::product::{Matrix, Product, Type};
use virtual_gpu::settings::{Schedule, Settings};
use virtual_gpu::work::Work;

const COMPUTE: u64 = 1;
const COPIES: u64 = 2;
const OTHER: u64 = 3; // a stream of the second device
const EVENT: u64 = 9;

fn machine(schedule: Schedule) -> Machine {
    let settings = Settings { count: 2, memory: 1 << 20, schedule, ..Settings::default() };
    let mut machine = Machine::new(settings);
    machine.queues.open(COMPUTE, 0);
    machine.queues.open(COPIES, 0);
    machine.queues.open(OTHER, 1);
    machine.queues.create(EVENT, 0, false);
    machine
}

/// One number times another.
fn product(first: u64, second: u64, out: u64) -> Work {
    let of = |address| Matrix { address, values: Type::F32, rows: 1, columns: 1, stride: 1 };
    let (first, second) = ((of(first), false), (of(second), false));
    Work::Product(Product { first, second, out: of(out), alpha: 1.0, beta: 0.0, tf32: false })
}

fn number(machine: &mut Machine, stream: u64, address: u64) -> Result<f32, Status> {
    let mut bytes = [0u8; 4];
    machine.download(stream, bytes.as_mut_ptr() as usize, address, 4)?;
    Ok(f32::from_le_bytes(bytes))
}

fn room(machine: &mut Machine) -> u64 {
    machine.allocate(0, 4, false).unwrap()
}

fn wait(machine: &mut Machine, waiting: u64, recorded: u64) {
    machine.queues.record(EVENT, recorded);
    let point = machine.queues.event(EVENT).unwrap().point.unwrap();
    machine.queues.wait(waiting, point);
}

#[test]
fn a_kernel_that_does_not_wait_for_its_copy_reads_what_nobody_wrote() {
    for waits in [true, false] {
        let mut machine = machine(Schedule::Late);
        let (a, b) = (room(&mut machine), room(&mut machine));
        machine.upload(COPIES, a, &3f32.to_le_bytes()).unwrap();
        if waits {
            wait(&mut machine, COMPUTE, COPIES);
        }
        machine.push(COMPUTE, product(a, a, b));
        assert_eq!(number(&mut machine, COMPUTE, b), if waits { Ok(9.0) } else { Err(Status::ILLEGAL_ADDRESS) });
    }
}

#[test]
fn a_copy_that_does_not_wait_for_the_kernel_before_it_changes_what_that_reads() {
    for (waits, wanted) in [(true, 9.0), (false, 25.0)] {
        let mut machine = machine(Schedule::Late);
        let (a, b) = (room(&mut machine), room(&mut machine));
        machine.upload(COMPUTE, a, &3f32.to_le_bytes()).unwrap();
        machine.finish(COMPUTE).unwrap();
        machine.push(COMPUTE, product(a, a, b));
        if waits {
            wait(&mut machine, COPIES, COMPUTE);
        }
        machine.upload(COPIES, a, &5f32.to_le_bytes()).unwrap();
        machine.finish(COPIES).unwrap();
        assert_eq!(number(&mut machine, COMPUTE, b), Ok(wanted));
    }
}

#[test]
fn a_program_without_mistakes_gets_the_same_on_every_schedule() {
    for schedule in [Schedule::Late, Schedule::Early].into_iter().chain((0..20).map(Schedule::Drawn)) {
        let mut machine = machine(schedule);
        let (a, b) = (room(&mut machine), room(&mut machine));
        for value in [3f32, 5.0, 7.0] {
            machine.upload(COPIES, a, &value.to_le_bytes()).unwrap();
            wait(&mut machine, COMPUTE, COPIES);
            machine.push(COMPUTE, product(a, a, b));
            wait(&mut machine, COPIES, COMPUTE);
        }
        assert_eq!(number(&mut machine, COMPUTE, b), Ok(49.0), "{schedule:?}");
    }
}

#[test]
fn memory_given_back_in_a_stream_is_gone_behind_that_place_only() {
    let mut machine = machine(Schedule::Late);
    let (a, b) = (room(&mut machine), room(&mut machine));
    machine.upload(COMPUTE, a, &3f32.to_le_bytes()).unwrap();
    machine.push(COMPUTE, product(a, a, b));
    machine.release(a).unwrap();
    machine.push(COMPUTE, Work::Free(a));
    assert_eq!(number(&mut machine, COMPUTE, b), Ok(9.0));
    assert_eq!(machine.release(a), Err(Status::INVALID_VALUE));
    machine.push(COMPUTE, product(a, a, b));
    assert_eq!(machine.finish(COMPUTE), Err(Status::ILLEGAL_ADDRESS));
    assert_eq!(number(&mut machine, COMPUTE, b), Err(Status::ILLEGAL_ADDRESS)); // nothing runs any more
}

#[test]
fn a_pinned_buffer_that_changes_before_its_copy_ran_is_a_fault() {
    for waits in [true, false] {
        let mut machine = machine(Schedule::Late);
        let a = room(&mut machine);
        let mut buffer = vec![1u8; 4];
        machine.pin(buffer.as_ptr() as usize, 4);
        machine.upload(COPIES, a, &buffer).unwrap();
        assert_eq!(machine.unpin(buffer.as_ptr() as usize), None); // the copy still needs it
        if waits {
            machine.finish(COPIES).unwrap();
        }
        buffer[2] = 7;
        assert_eq!(machine.finish(COPIES).is_ok(), waits);
        assert_eq!(machine.unpin(buffer.as_ptr() as usize), Some(4));
    }
}

#[test]
fn small_uploads_are_taken_along_and_large_ones_wait() {
    let mut machine = machine(Schedule::Late);
    let a = machine.allocate(0, 2 * STAGED as u64, false).unwrap();
    let mut bytes = vec![1u8; STAGED];
    machine.upload(COMPUTE, a, &bytes).unwrap();
    bytes.fill(2);
    assert_eq!(machine.queues.busy(), [COMPUTE]);
    machine.upload(COMPUTE, a + STAGED as u64, &vec![3; STAGED]).unwrap();
    let large = vec![4u8; STAGED + 1];
    machine.upload(COMPUTE, a + STAGED as u64 - 1, &large).unwrap();
    assert!(machine.queues.busy().is_empty());
    let mut read = vec![0u8; 2 * STAGED];
    machine.download(COMPUTE, read.as_mut_ptr() as usize, a, read.len() as u64).unwrap();
    assert!(read[..STAGED - 1].iter().all(|byte| *byte == 1) && read[STAGED - 1..].iter().all(|byte| *byte == 4));
}

#[test]
fn devices_do_not_see_each_other_but_by_copies() {
    let mut machine = machine(Schedule::Late);
    let a = room(&mut machine);
    let b = machine.allocate(1, 4, false).unwrap();
    machine.upload(COMPUTE, a, &3f32.to_le_bytes()).unwrap();
    wait(&mut machine, OTHER, COMPUTE);
    machine.push(OTHER, Work::Copy { to: b, from: (a, 4), bytes: None });
    assert_eq!(number(&mut machine, OTHER, b), Ok(3.0));
    machine.push(OTHER, product(a, a, b));
    assert_eq!(machine.finish(OTHER), Err(Status::ILLEGAL_ADDRESS));
    assert_eq!(number(&mut machine, COMPUTE, a), Ok(3.0)); // the first device goes on
}

#[test]
fn a_device_gives_out_what_it_has() {
    let mut machine = machine(Schedule::Late);
    let half = machine.allocate(0, 1 << 19, false).unwrap();
    assert_eq!(machine.allocate(0, (1 << 19) + 1, false), Err(Status::OUT_OF_MEMORY));
    let other = machine.allocate(0, 1 << 19, false).unwrap();
    assert_eq!(machine.allocate(0, 1, false), Err(Status::OUT_OF_MEMORY));
    machine.release(half).unwrap(); // in stream order: who allocates next is behind it
    machine.push(COMPUTE, Work::Free(half));
    assert!(machine.allocate(0, 1 << 19, false).is_ok() && machine.release(other).is_ok());
}

#[test]
#[ignore = "a measurement"]
fn speed_of_products() {
    let mut machine = Machine::new(Settings::default());
    machine.queues.open(COMPUTE, 0);
    let n = 512;
    let mut square = |n: usize| {
        let address = machine.allocate(0, (n * n * 4) as u64, false).unwrap();
        machine.push(COMPUTE, Work::Fill { at: address, value: 1, bytes: (n * n * 4) as u64 });
        Matrix { address, values: Type::F32, rows: n, columns: n, stride: n }
    };
    let (first, second, out) = (square(n), square(n), square(n));
    for (first_t, second_t) in [(false, false), (true, false), (false, true)] {
        let start = std::time::Instant::now();
        for _ in 0..10 {
            let product = Product {
                first: (first, first_t),
                second: (second, second_t),
                out,
                alpha: 1.0,
                beta: 0.0,
                tf32: false,
            };
            machine.push(COMPUTE, Work::Product(product));
        }
        machine.finish(COMPUTE).unwrap();
        let flops = 10.0 * 2.0 * (n as f64).powi(3);
        println!("{first_t} {second_t}: {:.1} Gflop/s", flops / start.elapsed().as_secs_f64() / 1e9);
    }
}
