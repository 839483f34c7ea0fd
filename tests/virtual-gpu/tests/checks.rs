//! Checks: each with a mistake planted, which must be found, and with the kernel as it should be, which must pass.

mod common;

use common::Kernel;

/// Runs both; the fault's words.
fn planted(right: &Kernel, wrong: &Kernel, input: &[u32], words: usize) -> String {
    right.run(input, words).unwrap_or_else(|fault| panic!("{fault}"));
    wrong.fault(input, words)
}

fn numbers(count: u32) -> Vec<u32> {
    (0..count).collect()
}

#[test]
fn one_element_too_far() {
    let body = |offset: u32| format!("ld.global.u32 %r0, [%rd8+{offset}]; st.global.u32 [%rd9], %r0;");
    let fault = planted(&Kernel::new(&body(0)), &Kernel::new(&body(4)), &numbers(32), 32);
    assert!(
        fault.contains("thread [31, 0, 0]") && fault.contains("0 bytes beyond the end of the 128 bytes"),
        "{fault}"
    );
    assert!(fault.contains("`ld.global.u32 %r0, [%rd8+4];"), "{fault}");
    let body = |offset: u32| format!("st.global.u32 [%rd9+{offset}], %thread;");
    assert!(planted(&Kernel::new(&body(0)), &Kernel::new(&body(4)), &[0], 32).contains("Write of 4 bytes"));
}

#[test]
fn a_vector_off_its_alignment() {
    let body =
        |offset: u32| format!("ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%in+{offset}]; st.global.u32 [%rd9], %r3;");
    let fault = planted(&Kernel::new(&body(16)), &Kernel::new(&body(8)), &numbers(32), 32);
    assert!(fault.contains("no multiple of 16"), "{fault}");
    let body = |offset: u32| format!("st.shared.v2.u32 [fixed+{offset}], {{%r0, %r1}};");
    assert!(
        planted(&Kernel::new(&body(8)).threads(1), &Kernel::new(&body(4)).threads(1), &[0], 1)
            .contains("no multiple of 8")
    );
}

#[test]
fn memory_that_nobody_wrote() {
    let body = |first: &str| format!("{first} ld.global.u32 %r0, [%rd9]; st.global.u32 [%rd9], %r0;");
    let fault = planted(&Kernel::new(&body("st.global.u32 [%rd9], %thread;")), &Kernel::new(&body("")), &[0], 32);
    assert!(fault.contains("never written"), "{fault}");
    let body = |at: u32| format!("st.shared.u32 [fixed], %thread; ld.shared.u32 %r0, [fixed+{at}];");
    assert!(
        planted(&Kernel::new(&body(0)).threads(1), &Kernel::new(&body(4)).threads(1), &[0], 1).contains("nobody wrote")
    );
}

#[test]
fn shared_memory_beyond_what_the_launch_gave() {
    let kernel = |bytes| Kernel::new("st.shared.u32 [dynamic+60], %thread;").threads(1).dynamic_shared(bytes);
    assert!(planted(&kernel(64), &kernel(48), &[0], 1).contains("at shared address 4156 of 4144"));
}

/// Every thread writes its word of shared memory and reads that of another, `distance` away.
fn neighbours(distance: u32, between: &str, after: &str) -> Kernel {
    Kernel::new(&format!(
        "
    mov.u32 %r0, fixed;
    shl.b32 %r1, %thread, 2;
    add.s32 %r1, %r1, %r0;
    st.shared.u32 [%r1], %thread;
    {between}
    xor.b32 %r2, %thread, {distance};
    shl.b32 %r2, %r2, 2;
    add.s32 %r2, %r2, %r0;
    ld.shared.u32 %r3, [%r2];
    st.global.u32 [%rd9], %r3;
    {after}
    st.shared.u32 [%r1], 7;"
    ))
    .threads(64)
}

#[test]
fn a_barrier_that_is_missing() {
    let right = neighbours(32, "bar.sync 0;", "bar.sync 0;");
    assert_eq!(right.run(&[0], 64).unwrap().0, (0..64).map(|thread| thread ^ 32).collect::<Vec<_>>());
    // The first warp would read what the second has not yet written.
    assert!(planted(&right, &neighbours(32, "", "bar.sync 0;"), &[0], 64).contains("nobody wrote"));
    for seed in [0, 1, 2] {
        let fault = planted(&right, &neighbours(32, "bar.sync 0;", "").seed(seed), &[0], 64);
        assert!(fault.contains("of another warp touched since the last barrier"), "{fault}");
    }
}

#[test]
fn lockstep_orders_nothing_within_a_warp() {
    let counted = |between: &str, after: &str| neighbours(1, between, after).run(&[0], 64).unwrap().1;
    assert_eq!(counted("bar.warp.sync -1;", "bar.warp.sync -1;").within_warp, 0);
    let counts = counted("", "bar.warp.sync -1;");
    assert_eq!(counts.within_warp, 64);
    assert!(counts.first_within_warp.unwrap().contains("lane 1 of this warp"));
    assert_eq!(counted("bar.warp.sync -1;", "").within_warp, 64);
}

#[test]
fn a_barrier_that_not_all_reach() {
    let body = |threads: u32| {
        format!(
            "setp.ge.u32 %p1, %thread, {threads}; @%p1 bra $other; bar.sync 0; bra.uni $end; $other: bar.sync 0; $end:"
        )
    };
    let fault = planted(&Kernel::new(&body(32)).threads(32), &Kernel::new(&body(16)).threads(32), &[0], 32);
    assert!(fault.contains("wait for each other"), "{fault}");
    let fault = Kernel::new("setp.lt.u32 %p1, %thread, 5; @%p1 bar.sync 0;").fault(&[0], 1);
    assert!(fault.contains("never come here"), "{fault}");
    // Threads that ended are not waited for.
    Kernel::new("setp.lt.u32 %p1, %thread, 40; @%p1 bra $end; bar.sync 0; $end:").threads(64).run(&[0], 1).unwrap();
}

#[test]
fn an_exchange_with_lanes_that_are_not_there() {
    let body = |mask: u32| {
        format!(
            "setp.ge.u32 %p1, %thread, 16; @%p1 exit; shfl.sync.bfly.b32 %r1, %thread, 8, 31, {mask}; st.global.u32 [%rd9], %r1;"
        )
    };
    let fault = planted(&Kernel::new(&body(0xFFFF)), &Kernel::new(&body(u32::MAX)), &[0], 32);
    assert!(fault.contains("lanes 0xffff0000 never come here"), "{fault}");
    let reach = |lane: u32| {
        format!("setp.ge.u32 %p1, %thread, 16; @%p1 exit; shfl.sync.idx.b32 %r1, %thread, {lane}, 31, 0xFFFF;")
    };
    assert!(planted(&Kernel::new(&reach(15)), &Kernel::new(&reach(16)), &[0], 1).contains("takes no part"));
    let product = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, {%f0,%f1,%f2,%f3};";
    assert!(planted(&Kernel::new(product), &Kernel::new(product).threads(24), &[0], 1).contains("never come here"));
}

#[test]
fn blocks_that_touch_the_same_bytes() {
    let own =
        "mov.u32 %r1, %ctaid.x; mad.lo.s32 %r2, %r1, 32, %thread; mul.wide.u32 %rd1, %r2, 4; add.s64 %rd1, %out, %rd1;";
    let right = Kernel::new(&format!("{own} st.global.u32 [%rd1], %r1;")).grid(3);
    let same = Kernel::new("st.global.u32 [%rd9], %thread;").grid(3);
    let fault = planted(&right, &same, &[0], 96);
    assert!(fault.contains("block [1, 0, 0]") && fault.contains("that block 0 wrote in the same launch"), "{fault}");
    let reads = format!("st.global.u32 [%rd9], %thread; {own} ld.global.u32 %r3, [%rd1+-128];");
    assert!(
        Kernel::new(
            &reads
                .replace("st.global.u32 [%rd9]", "setp.eq.u32 %p1, %ctaid.x, 0; @%p1 st.global.u32 [%rd9]")
                .replace("%rd1+-128", "%rd9")
        )
        .grid(2)
        .fault(&[0], 64)
        .contains("Read of bytes that block 0 wrote")
    );
}

/// Blocks leave a sum each; the last to arrive adds up. `input` is the counter.
fn last_block(release: &str, acquire: &str) -> Kernel {
    Kernel::new(&format!(
        "
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %nctaid.x;
    mul.wide.u32 %rd1, %r1, 4;
    add.s64 %rd1, %out, %rd1;
    st.global.u32 [%rd1], 5;
    {release}
    atom.global.add.u32 %r3, [%in], 1;
    add.u32 %r3, %r3, 1;
    setp.ne.u32 %p1, %r3, %r2;
    @%p1 bra $end;
    {acquire}
    ld.global.u32 %r4, [%out];
    ld.global.u32 %r5, [%out+8];
    add.u32 %r4, %r4, %r5;
    st.global.u32 [%out+12], %r4;
$end:"
    ))
    .grid(3)
    .threads(1)
}

#[test]
fn the_last_block_needs_both_fences() {
    let right = last_block("membar.gl;", "membar.gl;");
    for seed in 0..5 {
        assert_eq!(last_block("membar.gl;", "membar.gl;").seed(seed).run(&[0], 4).unwrap().0[3], 10);
    }
    assert!(planted(&right, &last_block("", "membar.gl;"), &[0], 4).contains("Read of bytes that block"));
    assert!(planted(&right, &last_block("membar.gl;", ""), &[0], 4).contains("Read of bytes that block"));
}

#[test]
fn what_is_not_known_faults_where_it_runs() {
    let fault = planted(
        &Kernel::new("bra.uni $end; tex.1d.v4.f32.s32 {%f0, %f1, %f2, %f3}, %r1; $end:"),
        &Kernel::new("activemask.b32 %r1;"),
        &[0],
        1,
    );
    assert!(fault.contains("`activemask.b32 %r1;`: this instruction is not known"), "{fault}");
}

#[test]
fn counts_are_those_of_a_profiler() {
    let body = "
    ld.global.u32 %r0, [%rd8];
    shl.b32 %r1, %thread, 3;
    mov.u32 %r2, fixed;
    add.s32 %r1, %r1, %r2;
    st.shared.u32 [%r1], %r0;
    mul.wide.u32 %rd1, %thread, 32;
    add.s64 %rd1, %out, %rd1;
    st.global.u32 [%rd1], %r0;";
    let counts = Kernel::new(body).threads(64).run(&numbers(64), 512).unwrap().1;
    assert_eq!((counts.launches, counts.blocks, counts.threads, counts.instructions), (1, 1, 64, 2 * 17));
    let figures =
        |traffic: &virtual_gpu::statistics::Traffic| (traffic.requests, traffic.taken, traffic.needed, traffic.bytes);
    assert_eq!(figures(&counts.loads), (2, 8, 8, 256));
    assert_eq!(figures(&counts.stores), (2, 64, 8, 256), "a sector for every word");
    assert_eq!(figures(&counts.shared), (2, 4, 2, 256), "every other bank: twice the passes");
    assert_eq!(counts.lines.len(), 3);
}
