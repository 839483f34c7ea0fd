//! Tensor cores: products and transposed loads against dense matrices.
//
// Where elements lie is stated here a second time, by the formulas of the PTX manual ("Matrix Fragments for mma.m16n8k16 with
// floating point type", "ldmatrix"); the interpreter has it from CUTLASS's layouts.

mod common;

use common::Kernel;
use half::bf16;

fn value(seed: usize) -> bf16 {
    bf16::from_f32(((seed * 7919 + 13) % 64) as f32 / 16.0 - 2.0)
}

fn pair(low: bf16, high: bf16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

#[test]
fn a_product_of_fragments_is_the_product() {
    let a = |row: usize, k: usize| value(row * 16 + k);
    let b = |k: usize, column: usize| value(1000 + k * 8 + column);
    let c = |row: usize, column: usize| (row * 8 + column) as f32 / 8.0;
    // Ten words a lane: a0 to a3, b0, b1, c0 to c3.
    let words: Vec<u32> = (0..32)
        .flat_map(|lane| {
            let (group, thread) = (lane / 4, lane % 4);
            let left = (0..4).map(move |register| {
                let (row, k) = (group + 8 * (register % 2), 2 * thread + 8 * (register / 2));
                pair(a(row, k), a(row, k + 1))
            });
            let right = (0..2).map(move |register| {
                let k = 2 * thread + 8 * register;
                pair(b(k, group), b(k + 1, group))
            });
            let sums = (0..4).map(move |register| c(group + 8 * (register / 2), 2 * thread + register % 2).to_bits());
            left.chain(right).chain(sums)
        })
        .collect();
    let body = "
    mul.wide.u32 %rd1, %thread, 40;
    add.s64 %rd1, %in, %rd1;
    ld.global.v2.u32 {%r0, %r1}, [%rd1];
    ld.global.v2.u32 {%r2, %r3}, [%rd1+8];
    ld.global.v2.u32 {%r4, %r5}, [%rd1+16];
    ld.global.v2.f32 {%f0, %f1}, [%rd1+24];
    ld.global.v2.f32 {%f2, %f3}, [%rd1+32];
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f4,%f5,%f6,%f7}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, {%f0,%f1,%f2,%f3};
    mul.wide.u32 %rd2, %thread, 16;
    add.s64 %rd2, %out, %rd2;
    st.global.v4.f32 [%rd2], {%f4, %f5, %f6, %f7};";
    let (got, counts) = Kernel::new(body).run(&words, 128).unwrap();
    assert_eq!(counts.products, 1);
    for (at, got) in got.iter().enumerate() {
        let (lane, register) = (at / 4, at % 4);
        let (row, column) = (lane / 4 + 8 * (register / 2), 2 * (lane % 4) + register % 2);
        let expected: f32 = (0..16).map(|k| a(row, k).to_f32() * b(k, column).to_f32()).sum::<f32>() + c(row, column);
        assert_eq!(f32::from_bits(*got), expected, "row {row}, column {column}"); // eighths and sixteenths: sums are exact
    }
}

#[test]
fn sums_are_cut_off() {
    // 1 + 2^-24 + 2^-24 in one product: rounded it is 1 + 2^-23, cut off too; 1 + 1.5 · 2^-23 tells the two apart.
    let body = |low: f32| {
        format!(
            "
    mov.u32 %r0, 0x{:04X};
    mov.u32 %r4, 0x3F80;
    mov.u32 %r6, 0;
    setp.ne.u32 %p1, %thread, 0;
    @%p1 mov.u32 %r0, 0;
    @%p1 mov.u32 %r4, 0;
    mov.f32 %f0, 0f3F800000;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f4,%f5,%f6,%f7}}, {{%r0,%r6,%r6,%r6}}, {{%r4,%r6}}, {{%f0,%f0,%f0,%f0}};
    @!%p1 st.global.f32 [%rd9], %f4;",
            bf16::from_f32(low).to_bits()
        )
    };
    let sum = |low: f32| f32::from_bits(Kernel::new(&body(low)).run(&[0], 1).unwrap().0[0]);
    assert_eq!(sum(1.5 * f32::EPSILON), 1.0 + f32::EPSILON);
    assert_eq!(sum(-0.25 * f32::EPSILON), 1.0 - f32::EPSILON / 2.0);
}

/// `ldmatrix` of four matrices whose element at a row and a column is `64 m + 8 row + column`.
fn loaded(transposed: bool) -> Vec<u32> {
    let modifier = if transposed { ".trans" } else { "" };
    let body = format!(
        "
    mul.wide.u32 %rd1, %thread, 16;
    add.s64 %rd1, %in, %rd1;
    ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%rd1];
    mov.u32 %r4, fixed;
    mad.lo.s32 %r4, %thread, 48, %r4;
    st.shared.v4.u32 [%r4], {{%r0, %r1, %r2, %r3}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4{modifier}.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r4];
    mul.wide.u32 %rd2, %thread, 16;
    add.s64 %rd2, %out, %rd2;
    st.global.v4.u32 [%rd2], {{%r5, %r6, %r7, %r8}};"
    );
    let words: Vec<u32> = (0..128).map(|word| (2 * word) | ((2 * word + 1) << 16)).collect();
    Kernel::new(&body).run(&words, 128).unwrap().0
}

#[test]
fn matrices_are_loaded_by_rows_or_by_columns() {
    for (at, (plain, turned)) in loaded(false).iter().zip(loaded(true)).enumerate() {
        let (lane, matrix) = (at as u32 / 4, at as u32 % 4);
        let (group, thread) = (lane / 4, lane % 4);
        let element = |row: u32, column: u32| 64 * matrix + 8 * row + column;
        assert_eq!(*plain, element(group, 2 * thread) | element(group, 2 * thread + 1) << 16);
        assert_eq!(turned, element(2 * thread, group) | element(2 * thread + 1, group) << 16);
    }
}

#[test]
fn a_row_off_its_sixteen_bytes() {
    let body = |stride: u32| {
        format!(
            "
    mov.u32 %r4, fixed;
    mad.lo.s32 %r4, %thread, 16, %r4;
    st.shared.v4.u32 [%r4], {{0, 0, 0, 0}};
    bar.sync 0;
    mov.u32 %r4, fixed;
    mad.lo.s32 %r4, %thread, {stride}, %r4;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r4];"
        )
    };
    Kernel::new(&body(16)).run(&[0], 1).unwrap();
    assert!(Kernel::new(&body(8)).fault(&[0], 1).contains("no multiple of 16"));
}
