//! Place: the device whose kernels are checked, per thread; the emulation, unless `mixpool self-test` names another.

use candle_core::Device;
use mixpool::kernels::{Compute, DeviceChoice, Precision};
use std::cell::{Cell, RefCell};

thread_local! {
    static CHOICE: Cell<DeviceChoice> = const { Cell::new(DeviceChoice::Emulated(1)) };
    static OPENED: RefCell<Option<Compute>> = const { RefCell::new(None) };
}

/// From now on, this thread checks the kernels of another device.
pub(crate) fn choose(device: DeviceChoice) {
    CHOICE.set(device);
    OPENED.set(None);
}

/// The device in a precision.
pub(crate) fn compute(precision: Precision) -> Compute {
    OPENED.with_borrow_mut(|opened| {
        let open = || CHOICE.get().open(Precision::F32).unwrap();
        opened.get_or_insert_with(open).in_precision(precision)
    })
}

/// Where its tensors lie.
pub(crate) fn here() -> Device {
    compute(Precision::F32).device().clone()
}
