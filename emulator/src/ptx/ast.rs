//! A parsed PTX module: names resolved and scopes flattened, opcodes still as written.
//!
//! What an opcode means is decided by lowering (`exec::lower`), which refuses what it does not know.

use std::collections::HashMap;

/// A module as nvcc emits it for one translation unit.
#[derive(Debug, Clone, Default)]
pub struct Module {
    /// `.version`, for example (9, 0).
    pub version: (u32, u32),
    /// `.target`, for example `sm_90a`.
    pub target: String,
    /// Module-scope `.global`, `.const` and `.shared` variables (extern shared ones too).
    pub variables: Vec<Variable>,
    /// Kernels and device functions, bodies and bare declarations.
    pub functions: Vec<Function>,
    /// `.file` table: index to name.
    pub files: HashMap<u32, String>,
}

/// State spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "named as in the PTX ISA")]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// Fundamental types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "named as in the PTX ISA")]
pub enum Scalar {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

impl Scalar {
    /// The type by its name in PTX, without a dot.
    pub fn named(name: &str) -> Option<Scalar> {
        Some(match name {
            "pred" => Scalar::Pred,
            "b8" => Scalar::B8,
            "b16" => Scalar::B16,
            "b32" => Scalar::B32,
            "b64" => Scalar::B64,
            "b128" => Scalar::B128,
            "u8" => Scalar::U8,
            "u16" => Scalar::U16,
            "u32" => Scalar::U32,
            "u64" => Scalar::U64,
            "s8" => Scalar::S8,
            "s16" => Scalar::S16,
            "s32" => Scalar::S32,
            "s64" => Scalar::S64,
            "f16" => Scalar::F16,
            "f16x2" => Scalar::F16x2,
            "bf16" => Scalar::Bf16,
            "bf16x2" => Scalar::Bf16x2,
            "f32" => Scalar::F32,
            "f64" => Scalar::F64,
            _ => return None,
        })
    }

    /// Bytes in memory; a predicate has none and counts 1.
    pub fn bytes(self) -> u32 {
        match self {
            Scalar::Pred | Scalar::B8 | Scalar::U8 | Scalar::S8 => 1,
            Scalar::B16 | Scalar::U16 | Scalar::S16 | Scalar::F16 | Scalar::Bf16 => 2,
            Scalar::B64 | Scalar::U64 | Scalar::S64 | Scalar::F64 => 8,
            Scalar::B128 => 16,
            _ => 4,
        }
    }
}

/// A variable of a state space, or a kernel's or function's parameter.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its name, unique in the module or (for variables of nested scopes, made unique by the parser) in its function.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// Element type.
    pub ty: Scalar,
    /// Alignment in bytes, explicit or natural.
    pub align: u32,
    /// Bytes; 0 for `extern .shared` arrays of unknown length.
    pub bytes: u64,
    /// Initial bytes, `bytes` of them; empty if none was written (then zero for `.global` and `.const`).
    pub init: Vec<u8>,
    /// Addresses of other variables inside `init`: (byte offset, name, addend).
    pub relocations: Vec<(usize, String, i64)>,
    /// Declared `.extern`.
    pub external: bool,
    /// PTX line.
    pub line: u32,
}

/// Index of a register in [`Function::registers`].
pub type RegId = u32;
/// Index of a label in [`Function::labels`].
pub type LabelId = u32;

/// A kernel or device function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// `.entry` rather than `.func`.
    pub entry: bool,
    /// Whether there is a body; a bare declaration has none.
    pub defined: bool,
    /// Parameters in order; for kernels `Space::Param`. Old-style `.reg` parameters are refused.
    pub params: Vec<Variable>,
    /// Return parameters of a device function.
    pub returns: Vec<Variable>,
    /// `.maxntid` or `.reqntid`.
    pub max_threads: Option<[u32; 3]>,
    /// Whether that was `.reqntid`.
    pub threads_required: bool,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// `.reqnctapercluster` or `.explicitcluster` dimensions.
    pub cluster: Option<[u32; 3]>,
    /// Registers of all scopes: (name as written, type).
    pub registers: Vec<(String, Scalar)>,
    /// Variables declared in the body, `.shared`, `.local` and `.param`.
    pub variables: Vec<Variable>,
    /// Instructions in order.
    pub body: Vec<Instruction>,
    /// Label → index of the instruction it stands before (may be `body.len()`).
    pub labels: Vec<usize>,
    /// Names of the labels, for messages.
    pub label_names: Vec<String>,
    /// `.branchtargets` lists by name (made unique like variables).
    pub branch_targets: HashMap<String, Vec<LabelId>>,
    /// PTX line.
    pub line: u32,
}

/// `@p` or `@!p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// The predicate register.
    pub reg: RegId,
    /// `@!p`.
    pub negated: bool,
}

/// One instruction.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// Its guard.
    pub guard: Option<Guard>,
    /// Opcode with all its modifiers, as written: `ld.global.nc.v4.u32`.
    pub opcode: String,
    /// Operands in order.
    pub operands: Vec<Operand>,
    /// PTX line.
    pub line: u32,
    /// From `.loc`: (file index, line), the innermost position (not `inlined_at`).
    pub source: Option<(u32, u32)>,
}

/// `%tid.x` and its kin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "named as in the PTX ISA; the number is the dimension")]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    Clock,
    Clock64,
    Clock32Hi,
    GlobalTimer,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSmemSize,
    TotalSmemSize,
    ClusterId(u8),
    NclusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    IsExplicitCluster,
    GlobalTimerLo,
    GlobalTimerHi,
    AggrSmemSize,
    /// `%reserved_smem_offset_begin`, `_end`, `_cap` and `_0`, `_1`: shared memory the toolchain keeps for itself, which
    /// cooperative groups use.
    ReservedSmemBegin,
    ReservedSmemEnd,
    ReservedSmemCap,
    ReservedSmemOffset(u8),
    /// `%envreg0` to `%envreg31`: 0.
    Envreg(u8),
}

/// An operand.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register.
    Reg(RegId),
    /// `!p`.
    NotReg(RegId),
    /// `-r` does not exist in PTX; an integer literal as 64 bits, two's complement.
    Int(u64),
    /// `0f3F800000`: the bits.
    F32(u32),
    /// `0d…` (or a decimal literal such as `1.0`): the bits.
    F64(u64),
    /// A variable's address (plus a constant): `sym`, `sym+8`, also `generic(sym)` in initialisers.
    Symbol(String, i64),
    /// A function's name, in `call`.
    Function(String),
    /// A branch target.
    Label(LabelId),
    /// A special register.
    Special(Special),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `(a, b)`, in `call`.
    List(Vec<Operand>),
    /// `[base+offset]`, and for tensor instructions what stands behind the first comma: `[map, {x, y}]`.
    Address(Box<Address>),
    /// `a|b`, two destinations.
    Pair(Box<(Operand, Operand)>),
    /// `_`.
    Discard,
}

/// `[…]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Address {
    /// A register, symbol or (absolute) integer.
    pub base: Operand,
    /// Constant offset in bytes.
    pub offset: i64,
    /// Further operands inside the brackets, in order.
    pub extra: Vec<Operand>,
}
