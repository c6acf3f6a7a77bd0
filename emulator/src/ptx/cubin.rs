//! Register counts out of machine code: the one thing about a kernel that PTX cannot tell, and occupancy needs.

use std::collections::HashMap;

use super::fatbin::{u16_at, u32_at, u64_at};

/// Bytes of an ELF64 header.
pub(super) const HEADER: usize = 64;
/// Bytes of a section header and of a symbol.
const SECTION: u64 = 64;
const SYMBOL: usize = 24;
const SHT_NOBITS: u32 = 8;
const SHT_SYMTAB: u32 = 2;
/// `.nv.info` records: the format with a sized value, and the attribute "register count".
const SIZED: u8 = 4;
const REGISTER_COUNT: u8 = 0x2f;

/// Where a file's section headers lie.
#[derive(Clone, Copy)]
pub(super) struct Table {
    offset: u64,
    stride: u64,
    count: u64,
    /// Section with the sections' names.
    names: u16,
}

/// A section header.
#[derive(Clone, Copy)]
pub(super) struct Section {
    name: u32,
    kind: u32,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
}

impl Table {
    /// From an ELF64 little-endian header.
    pub fn of(file: &[u8]) -> Option<Table> {
        let ident = file.get(..6)?;
        if ident != b"\x7fELF\x02\x01" {
            return None;
        }
        let table = Table {
            offset: u64_at(file, 0x28)?,
            stride: u64::from(u16_at(file, 0x3a)?),
            count: u64::from(u16_at(file, 0x3c)?),
            names: u16_at(file, 0x3e)?,
        };
        (table.count == 0 || table.stride >= SECTION).then_some(table)
    }

    /// Byte behind the table.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.stride * self.count)
    }

    /// The headers that lie within `file`.
    pub fn sections<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = Section> + use<'a> {
        let table = *self;
        (0..table.count).map_while(move |n| {
            let at = usize::try_from(table.offset.checked_add(n * table.stride)?).ok()?;
            let bytes = file.get(at..)?;
            Some(Section {
                name: u32_at(bytes, 0)?,
                kind: u32_at(bytes, 4)?,
                offset: u64_at(bytes, 0x18)?,
                size: u64_at(bytes, 0x20)?,
                link: u32_at(bytes, 0x28)?,
                info: u32_at(bytes, 0x2c)?,
            })
        })
    }
}

impl Section {
    /// Byte behind its content in the file.
    pub fn end(&self) -> u64 {
        if self.kind == SHT_NOBITS { 0 } else { self.offset.saturating_add(self.size) }
    }

    fn content<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.offset).ok()?;
        file.get(start..usize::try_from(self.end()).ok()?)
    }
}

/// Registers a thread by kernel. Unreadable parts are left out: the count is a refinement, not a need.
///
/// Toolkits before 13 put the count into the top byte of `.text.<kernel>`'s `sh_info`; all of them list it in
/// `.nv.info` by symbol, which wins.
pub fn cubin_registers(elf: &[u8]) -> HashMap<String, u32> {
    registers(elf).unwrap_or_default()
}

fn registers(elf: &[u8]) -> Option<HashMap<String, u32>> {
    let table = Table::of(elf)?;
    let sections: Vec<Section> = table.sections(elf).collect();
    let names = sections.get(usize::from(table.names))?.content(elf)?;
    let mut registers = HashMap::new();
    for section in &sections {
        if let Some(kernel) = string(names, section.name).and_then(|name| name.strip_prefix(".text."))
            && section.info >> 24 != 0
        {
            registers.insert(kernel.to_owned(), section.info >> 24);
        }
    }
    let symbols = sections.iter().find(|s| s.kind == SHT_SYMTAB);
    let Some((symbols, strings)) = symbols.and_then(|s| {
        let strings = sections.get(usize::try_from(s.link).ok()?)?.content(elf)?;
        Some((s.content(elf)?, strings))
    }) else {
        return Some(registers);
    };
    let info = sections.iter().filter(|s| string(names, s.name) == Some(".nv.info"));
    for (symbol, count) in info.filter_map(|s| s.content(elf)).flat_map(counts) {
        let name = usize::try_from(symbol).ok().and_then(|n| u32_at(symbols, n.checked_mul(SYMBOL)?));
        if let Some(name) = name.and_then(|at| string(strings, at)).filter(|name| !name.is_empty()) {
            registers.insert(name.to_owned(), count);
        }
    }
    Some(registers)
}

/// (symbol, registers) of a `.nv.info` section: records of format, attribute, and two bytes of value or of size.
fn counts(info: &[u8]) -> Vec<(u32, u32)> {
    let mut counts = Vec::new();
    let mut rest = info;
    while let [format, attribute, low, high, tail @ ..] = rest {
        let size = if *format == SIZED { usize::from(u16::from_le_bytes([*low, *high])) } else { 0 };
        if *format == SIZED
            && *attribute == REGISTER_COUNT
            && let (Some(symbol), Some(count)) = (u32_at(tail, 0), u32_at(tail, 4))
        {
            counts.push((symbol, count));
        }
        rest = tail.get(size..).unwrap_or_default();
    }
    counts
}

fn string(table: &[u8], at: u32) -> Option<&str> {
    let bytes = table.get(usize::try_from(at).ok()?..)?;
    let end = bytes.iter().position(|&b| b == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}
