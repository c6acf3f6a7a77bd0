//! The parser on every form it knows, on what it must refuse, and on damaged text.

use cuda_emulator::ptx::ast::{Function, Guard, Module, Operand, Scalar, Space, Special};
use cuda_emulator::ptx::{describe, parse};
use proptest::prelude::*;

const FORMS: &str = include_str!("fixtures/forms.ptx");

fn forms() -> Module {
    parse(FORMS).unwrap_or_else(|error| panic!("{error}"))
}

fn function<'a>(module: &'a Module, name: &str) -> &'a Function {
    module.functions.iter().find(|f| f.name == name).unwrap()
}

fn shown(function: &Function) -> Vec<String> {
    function.body.iter().map(|i| i.shown(function).to_string()).collect()
}

/// A kernel around `body` with a few registers; the body starts on line 10.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.global .u32 g;\n.func f(.param .b32 a);\n\
         .entry k(.param .u64 k0)\n{{\n.reg .pred %p<3>;\n.reg .b32 %r<9>; .reg .b64 %rd<4>;\n{body}\n}}\n"
    )
}

#[test]
fn module_scope() {
    let module = forms();
    assert_eq!(module.version, (9, 0));
    assert_eq!(module.target, "sm_90a");
    assert_eq!(module.files[&1], "/kernels/forms.cu");
    assert_eq!(module.files[&2], "other.cuh");
    let names: Vec<&str> = module.functions.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["vprintf", "twice", "forms"]);
    assert!(!function(&module, "vprintf").defined && function(&module, "twice").defined);
}

#[test]
fn variables_and_initialisers() {
    let module = forms();
    let find = |name: &str| module.variables.iter().find(|v| v.name == name).unwrap();
    let table = find("table");
    assert_eq!((table.space, table.align, table.bytes), (Space::Global, 4, 16));
    assert_eq!(table.init, [1, 0, 0, 0, 254, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    let floats: Vec<u8> = [1.0f32, -2.5, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(find("coefficients").init, floats);
    let address = |at, addend| (at, "table".to_owned(), addend);
    assert_eq!(find("pointers").relocations, [address(0, 0), address(8, 8), address(16, 4)]);
    assert_eq!(find("packed").relocations, [address(1, 0)]);
    assert_eq!(find("packed").init[0], 42);
    assert_eq!(find("managed").init, [7, 0, 0, 0]);
    assert_eq!(find("grid").init, [1, 0, 2, 0, 0, 0, 3, 0, 4, 0, 5, 0]);
    assert_eq!((find("open").bytes, find("open").init[8]), (12, 3));
    let quad = find("quad");
    assert_eq!((quad.bytes, quad.align, &quad.init[12..]), (16, 16, &4.0f32.to_le_bytes()[..]));
    let dynamic = find("dynamic");
    assert_eq!((dynamic.bytes, dynamic.align, dynamic.external), (0, 128, true));
    assert_eq!((find("barriers").bytes, find("barriers").ty), (32, Scalar::B64));
    assert!(find("tentative").init.is_empty());
}

#[test]
fn kernel_header() {
    let module = forms();
    let kernel = function(&module, "forms");
    assert!(kernel.entry);
    let params: Vec<_> = kernel.params.iter().map(|p| (p.name.as_str(), p.bytes, p.align)).collect();
    assert_eq!(params, [("forms_param_0", 8, 8), ("forms_param_1", 128, 64), ("forms_param_2", 4, 4)]);
    assert_eq!((kernel.max_threads, kernel.threads_required), (Some([128, 1, 1]), true));
    assert_eq!((kernel.min_blocks, kernel.cluster), (Some(2), Some([2, 1, 1])));
    let twice = function(&module, "twice");
    assert_eq!((twice.returns[0].bytes, twice.params.len()), (16, 1));
}

#[test]
fn instructions_read_as_written() {
    let module = forms();
    let kernel = function(&module, "forms");
    assert_eq!(
        shown(kernel),
        [
            "mov.u32 %r1, %tid.x;",
            "mov.u32 %r2, 32;",
            "mov.u64 %SP, __local_depot0;",
            "mov.u64 %rd1, tile+16;",
            "mov.b64 {%r3, %r4}, %rd1;",
            "@!%p1 ld.global.nc.v4.u32 {%r5, _, %r6, %r7}, [%rd1-8];",
            "st.shared.u8 [tile+3], 255;",
            "ld.volatile.shared.u32 %r8, [%r1+12];",
            "setp.lt.and.s32 %p1|%p2, %r1, -5, !%p3;",
            "shfl.sync.bfly.b32 %r9|%p1, %r1, 15, 31, -1;",
            "add.f32 %f1, %f2, 0fBF800000;",
            "add.f64 %fd1, %fd1, 0d3FF0000000000000;",
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd2, {%r2, %r3}], [barriers];",
            "st.param.b32 [param0], %r1;",
            "call.uni (retval0), twice, (param0);",
            "st.param.b32 [param0$1], %r2;",
            "call (param0$1), %rd3, (param0$1), prototype_1;",
            "call.uni twice, ();",
            "mov.u64 %rd2, twice;",
            "mbarrier.try_wait.parity.shared::cta.b64 P1, [%r1], %r2;",
            "@P1 bra DONE;",
            "bra LAB;",
            "mov.b32 %r1, lone;",
            "@!P1 bra.uni LAB;",
            "bra END;",
            "brx.idx %r1, targets;",
            "ret;",
        ]
    );
    let listing = describe(kernel);
    assert!(listing.contains("\nEND:\n") && listing.contains(&format!("{:>6}  ret;\n", line_of("ret;;"))));
}

fn line_of(text: &str) -> usize {
    FORMS.lines().position(|line| line.contains(text)).unwrap() + 1
}

#[test]
fn scopes() {
    let module = forms();
    let kernel = function(&module, "forms");
    let branch = |n: usize| match kernel.body[n].operands[0] {
        Operand::Label(label) => kernel.labels[label as usize],
        _ => panic!("no branch"),
    };
    // Each LAB is that of its own scope; END is found from an inner one.
    assert_eq!((branch(20), branch(21), branch(23), branch(24)), (22, 19, 22, 26));
    let targets: Vec<usize> =
        kernel.branch_targets["targets"].iter().map(|label| kernel.labels[*label as usize]).collect();
    assert_eq!(targets, [25, 26]);
    let guard = |n: usize| kernel.body[n].guard.unwrap();
    assert_ne!(guard(20).reg, guard(23).reg, "two registers P1");
    assert_eq!(guard(5), Guard { reg: 1, negated: true });
    assert_ne!(kernel.body[22].operands[0], kernel.body[0].operands[0], "%r1 is shadowed");
    assert_eq!(kernel.body[0].operands[1], Operand::Special(Special::Tid(0)));
    let params: Vec<_> =
        kernel.variables.iter().filter(|v| v.space == Space::Param).map(|v| v.name.as_str()).collect();
    assert_eq!(params, ["param0", "retval0", "param0$1"]);
}

#[test]
fn positions() {
    let module = forms();
    let kernel = function(&module, "forms");
    assert_eq!(kernel.body[0].source, Some((1, 12)));
    assert_eq!(kernel.body[1].source, Some((1, 13)));
    assert_eq!(kernel.body[2].source, None);
    assert_eq!(kernel.body[0].line as usize, line_of("mov.u32 %r1, %tid.x;"));
    assert_eq!(kernel.body[14].line as usize, line_of("call.uni (retval0),"));
}

#[test]
fn a_guard_on_an_ordinary_register_is_refused_even_by_another_scope() {
    let error = parse(&kernel("{ .reg .b32 %p1; @%p1 ret; }")).unwrap_err();
    assert_eq!(error.problem, "`%p1` is no predicate register");
}

#[test]
fn malformed_bodies() {
    let cases = [
        ("mov.u32 %r1, %r9;", "PTX line 10: `%r9` is not declared, in `mov.u32 %r1, %r9;`"),
        ("mov.u32 %r1, %r01;", "PTX line 10: `%r01` is not declared, in `mov.u32 %r1, %r01;`"),
        (
            "\n\nmov.u32 %r1,\n  nowhere;",
            "PTX line 12: `nowhere` is not declared, in `mov.u32 %r1, nowhere;`",
        ),
        ("mov.u32 %r1, %tid;", "PTX line 10: `%tid` is not declared, in `mov.u32 %r1, %tid;`"),
        ("bra nowhere;", "PTX line 10: label `nowhere` is not declared, in `bra nowhere;`"),
        ("{ in: ret; } bra in;", "PTX line 10: label `in` is not declared, in `bra in;`"),
        ("a: a: ret;", "PTX line 10: label `a` is declared twice in its scope, in `a: ret;`"),
        ("bra;", "PTX line 10: `bra` without a label, in `bra;`"),
        ("t: .branchtargets x;", "PTX line 10: label `x` is not declared, in `t: .branchtargets x;`"),
        ("ret", "PTX line 10: expected an operand, found `}`, in `ret }`"),
        ("add.u32 %r1, %r2 %r3;", "PTX line 10: expected `;`, found `%r3`, in `add.u32 %r1, %r2 %r3;`"),
        ("add.u32 %r1, ;", "PTX line 10: expected an operand, found `;`, in `add.u32 %r1, ;`"),
        ("add.u32 %r1, , %r2;", "PTX line 10: expected an operand, found `,`, in `add.u32 %r1, , %r2;`"),
        ("mov.b64 {%r1, %r2, %rd1;", "PTX line 10: expected `}`, found `;`, in `mov.b64 {%r1, %r2, %rd1;`"),
        ("mov.b64 {}, %rd1;", "PTX line 10: expected an operand, found `}`, in `mov.b64 {}, %rd1;`"),
        (
            "mov.b64 {{{{{%r1}}}}}, %rd1;",
            "PTX line 10: brackets are nested too deep, in `mov.b64 {{{{{%r1}}}}}, %rd1;`",
        ),
        ("ld.u32 %r1, [];", "PTX line 10: expected an operand, found `]`, in `ld.u32 %r1, [];`"),
        (
            "ld.u32 %r1, [f];",
            "PTX line 10: an address begins with a register, a variable or an integer, in `ld.u32 %r1, [f];`",
        ),
        ("ld.u32 %r1, [g+%r2];", "PTX line 10: expected an offset, found `%r2`, in `ld.u32 %r1, [g+%r2];`"),
        ("mov.u32 %r1, 08;", "PTX line 10: `08` is no literal, in `mov.u32 %r1, 08;`"),
        ("mov.u32 %r1, 0f1;", "PTX line 10: `0f1` needs eight hexadecimal digits, in `mov.u32 %r1, 0f1;`"),
        (
            "mov.u32 %r1, -%r2;",
            "PTX line 10: expected a literal after `-`, found `%r2`, in `mov.u32 %r1, -%r2;`",
        ),
        ("mov.pred %p1, !g;", "PTX line 10: `g` is no register, in `mov.pred %p1, !g;`"),
        ("@%r1 ret;", "PTX line 10: `%r1` is no predicate register, in `@%r1 ret;`"),
        ("@%p1 }", "PTX line 10: expected an instruction, found `}`, in `@%p1 }`"),
        ("Ret;", "PTX line 10: `Ret` is no instruction, in `Ret;`"),
        (".tex .u64 t;", "PTX line 10: unknown directive `.tex` in a function, in `.tex .u64 t;`"),
        (".reg .b33 x;", "PTX line 10: expected a register type, found `.b33`, in `.reg .b33 x;`"),
        (".reg .b32 x, x;", "PTX line 10: `x` is declared twice in its scope, in `.reg .b32 x, x;`"),
        (".reg .b32 %r<4>;", "PTX line 10: `%r<…>` is declared twice in its scope, in `.reg .b32 %r<4>;`"),
        (".reg .b32 x<9999999>;", "PTX line 10: more than 1048576 registers, in `.reg .b32 x<9999999>;`"),
        (
            ".reg .b32 x<99999999999>;",
            "PTX line 10: a number of registers 99999999999 is out of range, in `.reg .b32 x<99999999999>;`",
        ),
        (
            ".local .b8 l[4] = {1};",
            "PTX line 10: only `.global` and `.const` variables take an initial value, in `.local .b8 l[4] = {1};`",
        ),
        (
            ".local .align 3 .b8 l;",
            "PTX line 10: alignment 3 is no power of two up to 65536, in `.local .align 3 .b8 l;`",
        ),
        (".loc 1 2;", "PTX line 10: expected a column, found `;`, in `.loc 1 2;`"),
        (".loc 1 2 3, somewhere;", "PTX line 10: `somewhere` in a `.loc`, in `.loc 1 2 3, somewhere;`"),
        ("{ ret;", "PTX line 6: the body of `k` does not end, in `.entry k(.param .u64 k0)`"),
        ("/* ret;", "PTX line 10: expected a statement, found a comment that does not end, in `/* ret;`"),
        (
            "ret; \u{e9}",
            "PTX line 10: expected a statement, found a character outside ASCII, or an unprintable one, in `\u{e9}`",
        ),
        ("# 1;", "PTX line 10: expected a statement, found `#`, in `# 1;`"),
    ];
    for (body, expected) in cases {
        let result = parse(&kernel(body)).map(|_| "parsed");
        assert_eq!(result.map_err(|error| error.to_string()), Err(expected.to_owned()), "{body}");
    }
}

#[test]
fn malformed_modules() {
    let cases = [
        ("", "the module has no `.version` and `.target`"),
        (".target sm_90a", "expected `.version` first, found `.target`"),
        ("hello", "expected a directive, found `hello`"),
        (".version x", "expected a version such as 9.0, found `x`"),
        (".version 9.0 .address_size 32", "only 64-bit addresses are supported"),
        (".version 9.0 .target 90", "expected an architecture such as sm_90a, found `90`"),
        (".version 9.0 .target x", "`x` is no architecture such as sm_90a"),
        (".version 9.0 .alias a, b;", "unknown directive `.alias`"),
        (".version 9.0 .visible .global .texref t;", "unknown directive `.texref` in a declaration"),
        (".version 9.0 .global .u32 t[];", "an array without a length needs `.extern` or an initial value"),
        (".version 9.0 .global .u32 t[2] = {1,2,3};", "more initial values than elements"),
        (".version 9.0 .global .u32 t[2][2] = {{1,2,3}};", "more initial values than elements"),
        (".version 9.0 .global .u32 t = x;", "`x` is not declared"),
        (".version 9.0 .global .u32 t = 1.0;", "a floating-point literal for an element of another type"),
        (".version 9.0 .global .f32 t = 1;", "an integer literal for a floating-point element"),
        (".version 9.0 .global .u32 g; .global .u32 t = g;", "an address needs an element of eight bytes"),
        (
            ".version 9.0 .global .u32 g; .global .b8 t[2] = {0xFF(g), 1};",
            "the eight bytes of an address must all be there",
        ),
        (".version 9.0 .global .u32 g; .global .b8 t[2] = {0xF0(g), 1};", "mask 0xf0 selects no single byte"),
        (".version 9.0 .global .u32 t[4294967296][4294967296];", "the array is too large"),
        (
            ".version 9.0 .global .b8 t[999999999] = {1};",
            "an initialised variable of more than 268435456 bytes",
        ),
        (".version 9.0 .global .u32 t; .global .u32 t;", "`t` is declared twice"),
        (".version 9.0 .global .u32 t; .const .u32 t;", "`t` was declared in another state space"),
        (".version 9.0 .global .u32 t; .func t();", "`t` is already a variable"),
        (".version 9.0 .func t(); .global .u32 t;", "`t` is already a function"),
        (".version 9.0 .func t(); .func t(.param .u32 a);", "`t` was declared with other parameters"),
        (".version 9.0 .func t() {} .func t() {}", "`t` is defined twice"),
        (
            ".version 9.0 .func t(.reg .u32 a);",
            "`.reg` parameters (the ABI of old toolkits) are not supported",
        ),
        (".version 9.0 .entry t() .fast {}", "unknown directive `.fast` of a function"),
        (".version 9.0 .entry t() .maxntid 0 {}", "a dimension of 0"),
        (".version 9.0 .section .text {}", "expected a `.debug_` section, found `.text`"),
        (
            ".version 9.0 .section .debug_x { .b8 1",
            "expected `}` at the end of the section, found the end of the text",
        ),
        (".version 9.0 .file 1 x", "expected a file name in quotes, found `x`"),
    ];
    for (text, problem) in cases {
        assert_eq!(parse(text).map(|_| ()).unwrap_err().problem, problem, "{text}");
    }
}

#[test]
fn long_statements_are_shortened_in_messages() {
    let error = parse(&kernel(&format!("mov.u32 %r1, {}x;", "\u{e9}".repeat(400)))).unwrap_err();
    assert!(error.text.chars().count() <= 161 && error.text.ends_with('…'), "{error}");
}

#[test]
fn five_megabytes_take_less_than_a_second() {
    let line = "\tfma.rn.f32 \t%r1, %r2, 0f3F800000, %r4;\n\tld.global.v2.u32 \t{%r5, %r6}, [%rd1+16];\n";
    let text = kernel(&line.repeat((5 << 20) / line.len()));
    let start = std::time::Instant::now();
    assert!(parse(&text).is_ok());
    assert!(start.elapsed().as_secs_f64() < 1.0, "{:?}", start.elapsed());
}

#[test]
fn many_calls_do_not_slow_down() {
    let call = "{ .param .b32 param0; st.param.b32 [param0], %r1; call.uni f, (param0); }\n";
    let start = std::time::Instant::now();
    let module = parse(&kernel(&call.repeat(20_000))).unwrap();
    assert!(start.elapsed().as_secs_f64() < 1.0, "{:?}", start.elapsed());
    assert_eq!(function(&module, "k").variables[19_999].name, "param0$19999");
}

#[test]
fn a_local_variable_that_hides_a_global_one_gets_its_own_name() {
    let module =
        parse(&kernel("st.u32 [g], %r1; { .shared .u32 g; st.u32 [g], %r1; } st.u32 [g], %r1;")).unwrap();
    let kernel = function(&module, "k");
    assert_eq!(shown(kernel), ["st.u32 [g], %r1;", "st.u32 [g$1], %r1;", "st.u32 [g], %r1;"]);
}

proptest! {
    #[test]
    fn damaged_text_does_not_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<prop::sample::Index>()), 1..8),
    ) {
        // Tokens are deleted, doubled, swapped with others, or characters replaced.
        let mut pieces: Vec<&str> = FORMS.split_inclusive([' ', ',', ';', '\n', '[', '{', '(', '<']).collect();
        for (at, edit, other) in &edits {
            let at = at.index(pieces.len());
            let other = other.index(pieces.len());
            match edit {
                0 => drop(pieces.remove(at)),
                1 => pieces.insert(at, pieces[other]),
                2 => pieces.swap(at, other),
                _ => pieces[at] = ["\0", "99999999999999999999", "\u{e9}", "\"", "/*", "{", "}", "%r"][other % 8],
            }
        }
        if let Ok(module) = parse(&pieces.concat()) {
            module.functions.iter().for_each(|function| drop(describe(function)));
        }
    }

    #[test]
    fn cut_text_does_not_panic(cut in 0..FORMS.len()) {
        if let Err(error) = parse(&FORMS[..cut]) {
            prop_assert!(error.line as usize <= FORMS[..cut].matches('\n').count() + 1);
        }
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in "\\.version 8.0\n\\.target sm_90\n\\PC{0,80}") {
        let _ = parse(&text);
    }
}
