//! Instructions: each kind against the PTX manual's words, on cases where a wrong reading gives another result.

mod common;

use common::{Kernel, each, float, one};

#[test]
fn integers_wrap_and_widen() {
    assert_eq!(one(u32::MAX, "add.s32 %r1, %r0, 2;"), 1);
    assert_eq!(one(7, "sub.s32 %r1, 3, %r0;"), -4i32 as u32);
    assert_eq!(one(0x8000_0001, "mul.hi.u32 %r1, %r0, 4;"), 2);
    assert_eq!(one(-3i32 as u32, "mul.hi.s32 %r1, %r0, 4;"), u32::MAX);
    assert_eq!(one(-3i32 as u32, "mul.wide.s32 %rd1, %r0, 5; add.s64 %rd1, %rd1, 16; cvt.u32.u64 %r1, %rd1;"), 1);
    assert_eq!(one(-3i32 as u32, "mul.wide.u32 %rd1, %r0, 2; shr.u64 %rd1, %rd1, 32; cvt.u32.u64 %r1, %rd1;"), 1);
    assert_eq!(one(5, "mad.lo.s32 %r1, %r0, -2, 13;"), 3);
    assert_eq!(one(-7i32 as u32, "div.s32 %r1, %r0, 2;"), -3i32 as u32);
    assert_eq!(one(-7i32 as u32, "rem.s32 %r1, %r0, 2;"), -1i32 as u32);
    assert_eq!(one(-7i32 as u32, "div.u32 %r1, %r0, 2;"), (u32::MAX - 6) / 2);
    assert_eq!(one(-7i32 as u32, "min.s32 %r1, %r0, 2; max.u32 %r1, %r1, 3;"), -7i32 as u32);
    assert_eq!(one(-7i32 as u32, "abs.s32 %r1, %r0; neg.s32 %r1, %r1;"), -7i32 as u32);
}

#[test]
fn bits_are_shifted_picked_and_put() {
    assert_eq!(each(&[0, 31, 32, 33], "mov.u32 %r2, -8; shl.b32 %r1, %r2, %r0;"), [-8i32 as u32, 0, 0, 0]);
    assert_eq!(each(&[1, 32, 77], "mov.u32 %r2, -8; shr.s32 %r1, %r2, %r0;"), [-4i32 as u32, u32::MAX, u32::MAX]);
    assert_eq!(each(&[1, 31, 32], "mov.u32 %r2, -8; shr.u32 %r1, %r2, %r0;"), [0x7FFF_FFFC, 1, 0]);
    assert_eq!(
        one(0xABCD, "and.b32 %r1, %r0, 0xFF; or.b32 %r1, %r1, 0x100; xor.b32 %r1, %r1, 1; not.b32 %r1, %r1;"),
        !0x1CC
    );
    assert_eq!(one(0x12345, "bfi.b32 %r1, %r0, -1, 4, 8;"), 0xFFFF_F45F);
    assert_eq!(one(0x12385, "bfe.u32 %r1, %r0, 4, 8; bfe.s32 %r2, %r0, 0, 4; add.s32 %r1, %r1, %r2;"), 0x38 + 5);
    assert_eq!(one(0xF0, "bfe.s32 %r1, %r0, 4, 4;"), u32::MAX);
    assert_eq!(
        one(0x00F0_0000, "popc.b32 %r1, %r0; clz.b32 %r2, %r0; shl.b32 %r2, %r2, 8; or.b32 %r1, %r1, %r2;"),
        4 + (8 << 8)
    );
    assert_eq!(one(0b1100, "lop3.b32 %r1, %r0, 10, 15, 0x6A;"), 0b1100 & 0b1010 ^ 0b1111);
    assert_eq!(one(0x4433_2211, "prmt.b32 %r1, %r0, 0x88776655, 0x7520;"), 0x8866_3311);
    assert_eq!(one(0x8000_0001, "shf.l.wrap.b32 %r1, %r0, 1, 33;"), 3);
    assert_eq!(one(1, "brev.b32 %r1, %r0;"), 0x8000_0000);
}

#[test]
fn floats_round_once_and_as_told() {
    let (x, y) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON / 2.0);
    let with = |instruction: &str| float(x, &format!("mov.f32 %f2, 0f{:08X}; {instruction}", y.to_bits()));
    assert_eq!(with("fma.rn.f32 %f1, %f0, %f2, 0fBF800000;"), x.mul_add(y, -1.0));
    assert_ne!(x.mul_add(y, -1.0), x * y - 1.0, "two roundings differ here");
    assert_eq!(with("mul.rm.f32 %f1, %f0, %f2;").next_up(), with("mul.rp.f32 %f1, %f0, %f2;"));
    assert_eq!(with("sub.f32 %f1, %f0, %f2;"), x - y);
    assert_eq!(float(3.0, "rcp.rn.f32 %f1, %f0;"), 1.0 / 3.0);
    assert_eq!(float(2.0, "sqrt.rn.f32 %f1, %f0; div.rn.f32 %f1, %f1, 0f40400000;"), 2.0f32.sqrt() / 3.0);
    assert_eq!(float(-2.5, "add.sat.f32 %f1, %f0, 0f3F800000;"), 0.0);
    assert_eq!(float(1e-40, "add.f32 %f1, %f0, 0f00000000;"), 1e-40);
    assert_eq!(float(1e-40, "add.ftz.f32 %f1, %f0, 0f00000000;"), 0.0);
    assert_eq!(float(-3.0, "copysign.f32 %f1, %f0, 0f40000000;"), -2.0);
    assert_eq!(float(f32::NAN, "max.f32 %f1, %f0, 0fC0000000;"), -2.0);
    assert_eq!(float(-0.0, "min.f32 %f1, 0f00000000, %f0;").to_bits(), (-0.0f32).to_bits());
    let double = "cvt.f64.f32 %fd1, %f0; fma.rn.f64 %fd1, %fd1, %fd1, 0dBFF0000000000000; cvt.rn.f32.f64 %f1, %fd1;";
    assert_eq!(float(x, double), (f64::from(x) * f64::from(x) - 1.0) as f32);
}

#[test]
fn approximate_functions_are_near_and_not_exact() {
    let inputs: Vec<u32> = (0..32).map(|lane| (lane as f32 / 7.0 - 2.0).to_bits()).collect();
    let got = each(&inputs, "ex2.approx.f32 %f1, %f0; mov.b32 %r1, %f1;");
    let errors: Vec<f64> = got
        .iter()
        .zip(&inputs)
        .map(|(got, x)| f64::from(f32::from_bits(*got)) / f64::from(f32::from_bits(*x)).exp2() - 1.0)
        .collect();
    assert!(errors.iter().all(|error| error.abs() < 2.5e-7), "{errors:?}");
    assert!(errors.iter().any(|error| error.abs() > 7e-8), "rounding alone is below this: {errors:?}");
    assert_eq!(float(1e-40, "rcp.approx.ftz.f32 %f1, %f0;"), f32::INFINITY);
    let third = "cvt.f64.f32 %fd1, %f0; rcp.approx.ftz.f64 %fd1, %fd1; mov.b64 {%r1, %r2}, %fd1;";
    assert_eq!(one(3.0f32.to_bits(), third), 0, "the lower half is zero");
}

#[test]
fn comparisons_know_nan() {
    let nan = f32::NAN;
    let holds = |name: &str, x: f32| {
        one(x.to_bits(), &format!("setp.{name}.f32 %p1, %f0, 0f3F800000; selp.u32 %r1, 1, 0, %p1;"))
    };
    let names = ["lt", "le", "gt", "ge", "eq", "ne", "ltu", "leu", "gtu", "geu", "equ", "neu", "num", "nan"];
    let row = |x: f32| names.map(|name| holds(name, x)).map(|bit| bit.to_string()).concat();
    assert_eq!(row(0.5), "11000111000110");
    assert_eq!(row(1.0), "01011001011010");
    assert_eq!(row(nan), "00000011111101");
    let joined = |second: &str| {
        format!("setp.ne.u32 %p0, %r0, 5; setp.lt.and.s32 %p1|%p2, %r0, 9, {second}%p0; selp.u32 %r1, 1, 0, %p1;")
    };
    assert_eq!((one(5, &joined("")), one(5, &joined("!"))), (0, 1));
    assert_eq!(
        one(
            -5i32 as u32,
            "setp.lt.s32 %p1, %r0, 3; setp.lt.u32 %p2, %r0, 3; xor.pred %p3, %p1, %p2; selp.b32 %r1, 7, 8, %p3;"
        ),
        7
    );
    assert_eq!(
        one(5, "setp.gt.s32 %p1, %r0, 3; not.pred %p2, %p1; and.pred %p3, %p1, !%p2; selp.b32 %r1, 7, 8, %p3;"),
        7
    );
}

#[test]
fn conversions_clamp_round_and_extend() {
    let to_int = |x: f32, how: &str| one(x.to_bits(), &format!("cvt.{how}.f32 %r1, %f0;")) as i32;
    assert_eq!(
        [to_int(2.5, "rni.s32"), to_int(-2.5, "rzi.s32"), to_int(-2.5, "rmi.s32"), to_int(2.1, "rpi.s32")],
        [2, -2, -3, 3]
    );
    assert_eq!([to_int(1e20, "rzi.s32"), to_int(-1.0, "rzi.u32"), to_int(f32::NAN, "rzi.s32")], [i32::MAX, 0, 0]);
    assert_eq!(float(2.5, "cvt.rni.f32.f32 %f1, %f0;"), 2.0);
    assert_eq!(float(-0.5, "cvt.sat.f32.f32 %f1, %f0;"), 0.0);
    assert_eq!(one(0x0100_0001, "cvt.rn.f32.u32 %f1, %r0; mov.b32 %r1, %f1;"), 16_777_216.0f32.to_bits());
    assert_eq!(one(0x0100_0001, "cvt.rp.f32.u32 %f1, %r0; mov.b32 %r1, %f1;"), 16_777_218.0f32.to_bits());
    assert_eq!(one(0x180, "cvt.s8.u32 %r1, %r0;"), -128i32 as u32);
    assert_eq!(one(-1i32 as u32, "cvt.s64.s32 %rd1, %r0; shr.u64 %rd1, %rd1, 32; cvt.u32.u64 %r1, %rd1;"), u32::MAX);
    // Ties of bf16 go to even: 1 + 2^-8 to 1, 1 + 3 · 2^-8 to 1 + 2^-6.
    let bf16 = |x: f32| one(x.to_bits(), "cvt.rn.bf16.f32 %rs1, %f0; cvt.u32.u16 %r1, %rs1;");
    assert_eq!([bf16(1.0 + 1.0 / 256.0), bf16(1.0 + 3.0 / 256.0)], [0x3F80, 0x3F82]);
    assert_eq!(one(1.5f32.to_bits(), "cvt.rn.bf16x2.f32 %r1, %f0, 0f40000000;"), 0x3FC0_4000);
    assert_eq!(one(0x3C00, "cvt.u16.u32 %rs1, %r0; cvt.f32.f16 %f1, %rs1; mov.b32 %r1, %f1;"), 1.0f32.to_bits());
}

#[test]
fn registers_are_put_together_and_taken_apart() {
    assert_eq!(one(0x1234_5678, "mov.b32 {%rs1, %rs2}, %r0; mov.b32 %r1, {%rs2, %rs1};"), 0x5678_1234);
    assert_eq!(one(7, "mov.b64 %rd1, {%r0, 9}; mov.b64 {_, %r1}, %rd1;"), 9);
    assert_eq!(one(7, "{ .reg .b32 %r0; mov.u32 %r0, 5; } mov.u32 %r1, %r0;"), 7, "a scope hides names, and ends");
    assert_eq!(one(7, "mov.u32 %r1, fixed; mov.u32 %r2, dynamic; sub.s32 %r1, %r2, %r1;"), 4096);
}

#[test]
fn lanes_exchange_registers() {
    let lanes: Vec<u32> = (0..32).collect();
    let shuffled = |instruction: &str| each(&lanes, &format!("mov.u32 %r1, -1; {instruction}"));
    let expect = |f: &dyn Fn(u32) -> u32| (0..32).map(f).collect::<Vec<_>>();
    assert_eq!(shuffled("shfl.sync.bfly.b32 %r1, %r0, 5, 31, -1;"), expect(&|lane| lane ^ 5));
    assert_eq!(
        shuffled("shfl.sync.up.b32 %r1, %r0, 3, 0, -1;"),
        expect(&|lane| if lane < 3 { lane } else { lane - 3 })
    );
    assert_eq!(
        shuffled("shfl.sync.down.b32 %r1|%p1, %r0, 4, 31, -1; selp.b32 %r1, %r1, 99, %p1;"),
        expect(&|lane| if lane < 28 { lane + 4 } else { 99 })
    );
    // Segments of 8 lanes: c = (32 - 8) << 8 | 31.
    assert_eq!(shuffled("shfl.sync.idx.b32 %r1, %r0, 2, 6175, -1;"), expect(&|lane| lane / 8 * 8 + 2));
    assert_eq!(shuffled("setp.gt.u32 %p1, %r0, 29; vote.sync.ballot.b32 %r1, %p1, -1;"), expect(&|_| 0xC000_0000));
}

#[test]
fn lanes_part_and_join() {
    // Collatz steps: every lane leaves the loop at another time; then all meet in a shuffle.
    let body = "
    ld.global.u32 %r0, [%rd8];
    mov.u32 %r1, 0;
$loop:
    setp.eq.u32 %p1, %r0, 1;
    @%p1 bra $done;
    and.b32 %r2, %r0, 1;
    setp.eq.u32 %p2, %r2, 0;
    @%p2 bra $even;
    mad.lo.u32 %r0, %r0, 3, 1;
    bra.uni $next;
$even:
    shr.u32 %r0, %r0, 1;
$next:
    add.u32 %r1, %r1, 1;
    bra.uni $loop;
$done:
    shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;
    st.global.u32 [%rd9], %r3;";
    let steps = |mut x: u32| {
        let mut count = 0;
        while x != 1 {
            x = if x & 1 == 0 { x / 2 } else { 3 * x + 1 };
            count += 1;
        }
        count
    };
    let input: Vec<u32> = (1..33).collect();
    let (got, counts) = Kernel::new(body).run(&input, 32).unwrap();
    assert_eq!(got, (0..32).map(|lane: u32| steps((lane ^ 1) + 1)).collect::<Vec<_>>());
    assert!(counts.divergences > 10 && counts.lanes < 32 * counts.instructions);
}

#[test]
fn memory_of_all_kinds_holds_what_was_put() {
    let spaces = "
    ld.global.v2.u16 {%rs1, %rs2}, [%rd8];
    mov.u64 %rd1, own;
    st.local.u16 [%rd1+2], %rs1;
    cvta.local.u64 %rd2, %rd1;
    ld.u16 %rs3, [%rd2+2];
    mov.u64 %rd3, dynamic;
    shl.b32 %r3, %thread, 2;
    cvt.u64.u32 %rd4, %r3;
    add.s64 %rd3, %rd3, %rd4;
    st.shared.u16 [%rd3], %rs2;
    cvta.shared.u64 %rd5, %rd3;
    st.u16 [%rd5+2], %rs3;
    ld.shared.u32 %r1, [%rd3];
    st.global.u32 [%rd9], %r1;";
    let input: Vec<u32> = (0..64).map(|x| x << 16 | (1000 + x)).collect();
    let (got, _) = Kernel::new(spaces).threads(64).dynamic_shared(256).run(&input, 64).unwrap();
    assert_eq!(got, (0..64).map(|x| (1000 + x) << 16 | x).collect::<Vec<_>>());
    assert_eq!(one(0x0000_80FF, "ld.global.s8 %r1, [%rd8+1];"), -128i32 as u32);
}

#[test]
fn atomics_add_up_over_blocks() {
    let body = "
    setp.ne.u32 %p1, %thread, 0;
    @%p1 bra $end;
    atom.global.add.u32 %r1, [%in], 5;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd1, %r2, 4;
    add.s64 %rd1, %out, %rd1;
    st.global.u32 [%rd1], %r1;
$end:";
    for seed in [0, 7] {
        let (mut got, counts) = Kernel::new(body).grid(5).seed(seed).run(&[100], 5).unwrap();
        assert_eq!(got.is_sorted(), seed == 0, "a seed draws the order of blocks");
        got.sort_unstable();
        assert_eq!((got, counts.atomics), (vec![100, 105, 110, 115, 120], 5));
    }
}
