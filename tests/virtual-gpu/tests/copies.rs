//! Copies to shared memory that go on while their thread computes, with mistakes planted.

mod common;

use common::Kernel;

/// Every thread copies its word, then reads one `distance` away.
fn copied(distance: u32, after_copy: &str) -> Kernel {
    Kernel::new(&format!(
        "mov.u32 %r1, fixed;
         mad.lo.s32 %r2, %thread, 4, %r1;
         cp.async.ca.shared.global [%r2], [%rd8], 4, 4;
         {after_copy}
         add.s32 %r3, %thread, {distance};
         and.b32 %r3, %r3, 63;
         mad.lo.s32 %r3, %r3, 4, %r1;
         ld.shared.u32 %r4, [%r3];
         st.global.u32 [%rd9], %r4;"
    ))
    .threads(64)
}

const WAIT: &str = "cp.async.wait_all;";
const WAIT_FOR_ALL: &str = "cp.async.wait_all; bar.sync 0;";

fn words(count: u32) -> Vec<u32> {
    (100..100 + count).collect()
}

#[test]
fn a_copy_is_there_after_a_wait_and_for_others_after_a_barrier_behind_it() {
    let own = copied(0, WAIT).run(&words(64), 64).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(own.0, words(64));
    let others = copied(40, WAIT_FOR_ALL).run(&words(64), 64).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(others.0[0], 140);
    for (distance, after_copy) in [(0, ""), (40, WAIT), (40, "bar.sync 0; cp.async.wait_all;"), (40, "bar.sync 0;")] {
        let fault = copied(distance, after_copy).fault(&words(64), 64);
        assert!(fault.contains("ld.shared.u32"), "{after_copy}: {fault}");
    }
}

#[test]
fn what_is_not_there_is_zero_and_not_read() {
    let body = |length: u32, offset: u32| {
        format!(
            "mov.u32 %r1, fixed; mov.u32 %r5, {length};
             cp.async.cg.shared.global [%r1], [%in+{offset}], 16, %r5;
             cp.async.wait_all;
             ld.shared.v4.u32 {{%r6, %r7, %r8, %r9}}, [%r1];
             st.global.v4.u32 [%out], {{%r6, %r7, %r8, %r9}};"
        )
    };
    let run = |length, offset| Kernel::new(&body(length, offset)).threads(1);
    assert_eq!(run(16, 0).run(&words(4), 4).unwrap().0, words(4));
    assert_eq!(run(8, 0).run(&words(4), 4).unwrap().0, [100, 101, 0, 0]);
    assert_eq!(run(0, 1600).run(&words(4), 4).unwrap().0, [0; 4], "far beyond the end, and not read");
    assert!(run(16, 1600).fault(&words(4), 4).contains("cp.async"));
    assert!(run(16, 8).fault(&words(8), 4).contains("no multiple"));
    assert!(run(20, 0).fault(&words(8), 4).contains("20 of 16 bytes"));
}

#[test]
fn a_tile_that_others_still_read_is_not_copied_over() {
    let again = |between: &str| {
        copied(
            40,
            &format!(
                "{WAIT_FOR_ALL}
                 xor.b32 %r5, %thread, 32; mad.lo.s32 %r5, %r5, 4, %r1; ld.shared.u32 %r6, [%r5];
                 {between}
                 cp.async.ca.shared.global [%r2], [%rd8], 4, 4;
                 {WAIT_FOR_ALL}"
            ),
        )
    };
    again("bar.sync 0;").run(&words(64), 64).unwrap_or_else(|fault| panic!("{fault}"));
    let fault = again("").fault(&words(64), 64);
    assert!(fault.contains("of another warp touched since the last barrier"), "{fault}");
}
