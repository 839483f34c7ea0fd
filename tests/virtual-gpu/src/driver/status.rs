//! Status codes of the driver (`CUresult`), with their names and the driver's own words.

use std::ffi::CStr;

/// What a function of the driver returns when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub i32);

macro_rules! codes {
    ($($code:literal $name:ident $text:literal)*) => {
        impl Status {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Self = Self($code);)*

            /// Its name, as `CUDA_ERROR_OUT_OF_MEMORY`, and what the driver says of it; none of a number it does not know.
            pub fn words(self) -> Option<(&'static CStr, &'static CStr)> {
                match self.0 {
                    0 => Some((c"CUDA_SUCCESS", c"no error")),
                    $($code => Some((words(concat!("CUDA_ERROR_", stringify!($name), "\0")), words(concat!($text, "\0")))),)*
                    _ => None,
                }
            }
        }
    };
}

fn words(text: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(text.as_bytes()).unwrap_or(c"")
}

codes! {
    1 INVALID_VALUE "invalid argument"
    2 OUT_OF_MEMORY "out of memory"
    3 NOT_INITIALIZED "initialization error"
    4 DEINITIALIZED "driver shutting down"
    34 STUB_LIBRARY "CUDA driver is a stub library"
    46 DEVICE_UNAVAILABLE "CUDA-capable device(s) is/are busy or unavailable"
    100 NO_DEVICE "no CUDA-capable device is detected"
    101 INVALID_DEVICE "invalid device ordinal"
    200 INVALID_IMAGE "device kernel image is invalid"
    201 INVALID_CONTEXT "invalid device context"
    209 NO_BINARY_FOR_GPU "no kernel image is available for execution on the device"
    214 ECC_UNCORRECTABLE "uncorrectable ECC error encountered"
    218 INVALID_PTX "a PTX JIT compilation failed"
    220 NVLINK_UNCORRECTABLE "uncorrectable NVLink error detected during the execution"
    222 UNSUPPORTED_PTX_VERSION "the provided PTX was compiled with an unsupported toolchain."
    304 OPERATING_SYSTEM "OS call failed or operation not supported on this OS"
    400 INVALID_HANDLE "invalid resource handle"
    500 NOT_FOUND "named symbol not found"
    600 NOT_READY "device not ready"
    700 ILLEGAL_ADDRESS "an illegal memory access was encountered"
    701 LAUNCH_OUT_OF_RESOURCES "too many resources requested for launch"
    702 LAUNCH_TIMEOUT "the launch timed out and was terminated"
    709 CONTEXT_IS_DESTROYED "context is destroyed"
    716 MISALIGNED_ADDRESS "misaligned address"
    719 LAUNCH_FAILED "unspecified launch failure"
    801 NOT_SUPPORTED "operation not supported"
    802 SYSTEM_NOT_READY "system not yet initialized"
    803 SYSTEM_DRIVER_MISMATCH "system has unsupported display driver / cuda driver combination"
    804 COMPAT_NOT_SUPPORTED_ON_DEVICE "forward compatibility was attempted on non supported HW"
    999 UNKNOWN "unknown error"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_of_the_header() {
        let (name, text) = Status::OUT_OF_MEMORY.words().unwrap();
        assert_eq!((name.to_str().unwrap(), text.to_str().unwrap()), ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"));
        assert!(Status(12345).words().is_none());
    }
}
