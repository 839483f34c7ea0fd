//! Driver: its functions, called as a program calls them.
#![allow(unsafe_code)] // they take C's pointers

use std::ptr::{from_ref, null_mut};
use virtual_gpu::cublas::{cublasCreate_v2, cublasDestroy_v2, cublasGemmEx, cublasSetStream_v2};
use virtual_gpu::driver::context::{cuCtxSetCurrent, cuDevicePrimaryCtxRetain};
use virtual_gpu::driver::copies::{cuMemcpyDtoHAsync_v2, cuMemcpyHtoDAsync_v2, cuMemsetD8Async};
use virtual_gpu::driver::device::{cuDeviceGet, cuDeviceGetAttribute, cuInit};
use virtual_gpu::driver::memory::{cuMemAlloc_v2, cuMemAllocAsync, cuMemFreeAsync, cuMemFreeHost, cuMemHostAlloc};
use virtual_gpu::driver::streams::{
    cuEventCreate, cuEventDestroy_v2, cuEventElapsedTime_v2, cuEventQuery, cuEventRecord, cuEventSynchronize,
    cuStreamCreate, cuStreamDestroy_v2, cuStreamSynchronize, cuStreamWaitEvent,
};

const INVALID_VALUE: i32 = 1;
const INVALID_DEVICE: i32 = 101;
const INVALID_CONTEXT: i32 = 201;
const INVALID_HANDLE: i32 = 400;
const NOT_READY: i32 = 600;

/// Binds the first device to this thread; a stream of it.
fn stream() -> u64 {
    let (mut context, mut stream) = (0, 0);
    assert_eq!(cuInit(0), 0);
    assert_eq!(unsafe { cuDevicePrimaryCtxRetain(&raw mut context, 0) }, 0);
    assert_eq!(cuCtxSetCurrent(context), 0);
    assert_eq!(unsafe { cuStreamCreate(&raw mut stream, 1) }, 0);
    stream
}

fn room(bytes: usize, stream: u64) -> u64 {
    let mut address = 0;
    assert_eq!(unsafe { cuMemAllocAsync(&raw mut address, bytes, stream) }, 0);
    address
}

#[test]
fn bytes_go_there_and_back() {
    let stream = stream();
    let address = room(5, stream);
    let mut back = [0u8; 5];
    unsafe {
        assert_eq!(cuMemsetD8Async(address, 7, 5, stream), 0);
        assert_eq!(cuMemcpyHtoDAsync_v2(address + 1, b"abc".as_ptr().cast(), 3, stream), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(back.as_mut_ptr().cast(), address, 5, stream), 0);
    }
    assert_eq!(back, *b"\x07abc\x07");
    assert_eq!((cuMemFreeAsync(address, stream), cuStreamSynchronize(stream)), (0, 0));
    assert_eq!(cuMemFreeAsync(address, stream), INVALID_VALUE);
}

#[test]
fn who_binds_no_context_or_names_what_is_gone_is_told() {
    let stream = stream();
    let mut event = 0;
    unsafe {
        assert_eq!(cuEventCreate(&raw mut event, 2), 0);
        assert_eq!((cuEventRecord(event, stream), cuEventDestroy_v2(event)), (0, 0));
        let mut device = 0;
        assert_eq!(cuDeviceGet(&raw mut device, 99), INVALID_DEVICE);
        assert_eq!(cuDeviceGetAttribute(&raw mut device, 12345, 0), INVALID_VALUE);
    }
    assert_eq!(cuStreamWaitEvent(stream, event, 0), INVALID_HANDLE);
    assert_eq!(cuStreamSynchronize(event), INVALID_HANDLE);
    let elsewhere = std::thread::spawn(move || cuStreamSynchronize(stream)).join().unwrap();
    assert_eq!(elsewhere, INVALID_CONTEXT);
    assert_eq!((cuStreamDestroy_v2(stream), cuStreamSynchronize(stream)), (0, INVALID_HANDLE));
}

#[test]
fn who_asks_an_event_again_and_again_comes_to_an_end() {
    let stream = stream();
    let (address, mut event) = (room(64, stream), 0);
    for value in 0..3 {
        assert_eq!(cuMemsetD8Async(address, value, 64, stream), 0);
    }
    assert_eq!(unsafe { cuEventCreate(&raw mut event, 2) }, 0);
    assert_eq!(cuEventQuery(event), 0); // nothing recorded
    assert_eq!(cuEventRecord(event, stream), 0);
    let answers: Vec<i32> = (0..4).map(|_| cuEventQuery(event)).collect();
    assert_eq!(answers, [NOT_READY, NOT_READY, NOT_READY, 0]);
    assert_eq!(cuEventSynchronize(event), 0);
}

#[test]
fn nothing_is_given_as_the_driver_gives_it() {
    let stream = stream();
    let mut address = 5;
    unsafe {
        assert_eq!(cuMemAlloc_v2(&raw mut address, 0), INVALID_VALUE);
        assert_eq!((cuMemAllocAsync(&raw mut address, 0, stream), address), (0, 0));
        assert_eq!(cuMemFreeAsync(0, stream), 0);
        let mut pinned = null_mut();
        assert_eq!(cuMemHostAlloc(&raw mut pinned, 0, 0), INVALID_VALUE);
        assert_eq!(cuMemHostAlloc(&raw mut pinned, 10, 0), 0);
        assert_eq!((cuMemFreeHost(pinned), cuMemFreeHost(pinned)), (0, INVALID_VALUE));
    }
}

#[test]
fn products_are_checked_before_they_are_queued() {
    let stream = stream();
    let address = room(64, stream);
    let mut handle = 0;
    assert_eq!(unsafe { cublasCreate_v2(&raw mut handle) }, 0);
    assert_eq!(cublasSetStream_v2(handle, stream), 0);
    let (one, zero) = (1f32, 0f32);
    let gemm = |handle, stride, at, values, compute| unsafe {
        let (alpha, beta) = (from_ref(&one).cast(), from_ref(&zero).cast());
        let (first, second, out) = (at, address, address + 32);
        #[rustfmt::skip]
        let code = cublasGemmEx(handle, 0, 1, 2, 2, 2, alpha, first, values, stride, second, values, 2, beta, out, values, 2, compute, -1);
        code
    };
    assert_eq!(gemm(handle, 2, address + 16, 0, 68), 0);
    assert_eq!(gemm(handle, 2, address + 16, 14, 68), 0);
    assert_eq!(gemm(handle, 2, address + 16, 14, 77), 15); // bf16 is not rounded to TF32
    assert_eq!(gemm(handle, 1, address + 16, 0, 68), 7); // columns closer than they are long
    assert_eq!(gemm(handle, 2, address + 18, 0, 68), 7); // f32 at an odd place
    assert_eq!(gemm(handle, 2, address + 16, 1, 68), 15); // f64
    assert_eq!(gemm(handle + 1, 2, address, 0, 68), 1);
    assert_eq!((cublasDestroy_v2(handle), cublasDestroy_v2(handle)), (0, 1));
}

#[test]
fn events_that_tell_the_time_do_so_when_they_were_passed() {
    let stream = stream();
    let address = room(1 << 20, stream);
    let events = [0, 0, 2].map(|flags| {
        let mut event = 0;
        assert_eq!(unsafe { cuEventCreate(&raw mut event, flags) }, 0);
        assert_eq!(cuEventRecord(event, stream), 0);
        assert_eq!(cuMemsetD8Async(address, 1, 1 << 20, stream), 0);
        event
    });
    let mut time = -1.0;
    let mut between = |first, second| unsafe { cuEventElapsedTime_v2(&raw mut time, first, second) };
    assert_eq!(between(events[0], events[1]), NOT_READY);
    assert_eq!(cuStreamSynchronize(stream), 0);
    assert_eq!(between(events[0], events[2]), INVALID_HANDLE); // it was made without
    assert_eq!(between(events[0], events[1]), 0);
    assert!(time > 0.0);
}
