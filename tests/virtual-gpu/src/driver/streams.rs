//! Streams and events.

use super::status::Status;
use super::{call_on_device, put, stream_of};
use crate::work::Work;
use std::ffi::{c_int, c_uint};

/// An event that does not tell the time.
const DISABLE_TIMING: c_uint = 2;
/// A stream that does not wait for the default one.
const NON_BLOCKING: c_uint = 1;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut u64, flags: c_uint) -> c_int {
    call_on_device("cuStreamCreate", |machine, device| {
        if flags != NON_BLOCKING {
            eprintln!("virtual GPU: streams that wait for the default one are not modelled");
            return Err(Status::NOT_SUPPORTED);
        }
        let handle = machine.handle();
        machine.queues.open(handle, device);
        unsafe { put(stream, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: u64) -> c_int {
    call_on_device("cuStreamDestroy_v2", |machine, _| {
        machine.queues.device(stream).ok_or(Status::INVALID_HANDLE)?;
        let done = machine.finish(stream);
        machine.queues.close(stream);
        done
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: u64) -> c_int {
    call_on_device("cuStreamSynchronize", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        machine.finish(stream)?;
        let pool = &mut machine.gpus[device].pool;
        pool.trim(pool.threshold);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) -> c_int {
    call_on_device("cuStreamWaitEvent", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        let event = machine.queues.event(event).ok_or(Status::INVALID_HANDLE)?;
        if let Some(point) = event.point {
            machine.queues.wait(stream, point);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut u64, flags: c_uint) -> c_int {
    call_on_device("cuEventCreate", |machine, device| {
        let handle = machine.handle();
        machine.queues.create(handle, device, flags & DISABLE_TIMING == 0);
        unsafe { put(event, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: u64) -> c_int {
    call_on_device("cuEventDestroy_v2", |machine, _| {
        machine.stamps.remove(&event);
        machine.queues.destroy(event).then_some(()).ok_or(Status::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: u64, stream: u64) -> c_int {
    call_on_device("cuEventRecord", |machine, device| {
        let stream = stream_of(machine, device, stream)?;
        let of = machine.queues.event(event).ok_or(Status::INVALID_HANDLE)?;
        if of.device != device {
            return Err(Status::INVALID_HANDLE);
        }
        if of.timed {
            machine.stamps.remove(&event);
            machine.push(stream, Work::Stamp(event));
        }
        machine.queues.record(event, stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: u64) -> c_int {
    call_on_device("cuEventSynchronize", |machine, device| {
        let event = machine.queues.event(event).ok_or(Status::INVALID_HANDLE)?;
        if let Some(point) = event.point {
            machine.advance(point);
        }
        machine.gpus[device].fault.map_or(Ok(()), Err)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: u64) -> c_int {
    call_on_device("cuEventQuery", |machine, device| {
        let event = machine.queues.event(event).ok_or(Status::INVALID_HANDLE)?;
        let Some(point) = event.point else { return Ok(()) };
        let reached = machine.queues.reached(point);
        machine.one(point); // so that who asks again and again comes to an end
        machine.gpus[device].fault.map_or(Ok(()), Err)?;
        if reached { Ok(()) } else { Err(Status::NOT_READY) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: u64, end: u64) -> c_int {
    call_on_device("cuEventElapsedTime_v2", |machine, _| {
        let moments = [start, end].map(|event| {
            let known = machine.queues.event(event).filter(|event| event.timed && event.point.is_some());
            known.ok_or(Status::INVALID_HANDLE)?;
            machine.stamps.get(&event).copied().ok_or(Status::NOT_READY)
        });
        let [start, end] = moments;
        let (start, end) = (start?, end?);
        let seconds =
            end.saturating_duration_since(start).as_secs_f32() - start.saturating_duration_since(end).as_secs_f32();
        unsafe { put(milliseconds, 1000.0 * seconds) }
    })
}
