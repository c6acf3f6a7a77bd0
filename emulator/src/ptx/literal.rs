//! Numeric literals.

use super::ast::Operand;

/// A literal as an operand, or why it is none. The text starts with a digit; signs are the caller's.
pub(super) fn literal(text: &str) -> Result<Operand, String> {
    let refused = || format!("`{text}` is no literal");
    let prefix = text.as_bytes().get(1).map(|b| b | 0x20);
    let tail = text.get(2..).unwrap_or_default();
    if text.starts_with('0') {
        match prefix {
            Some(b'f') if digits(tail, 16) && tail.len() == 8 => {
                return u32::from_str_radix(tail, 16).map(Operand::F32).map_err(|_| refused());
            }
            Some(b'd') if digits(tail, 16) && tail.len() == 16 => {
                return u64::from_str_radix(tail, 16).map(Operand::F64).map_err(|_| refused());
            }
            Some(b'f') => return Err(format!("`{text}` needs eight hexadecimal digits")),
            Some(b'd') => return Err(format!("`{text}` needs sixteen hexadecimal digits")),
            _ => {}
        }
    }
    let hexadecimal = text.starts_with('0') && prefix == Some(b'x');
    if !hexadecimal && text.bytes().any(|b| matches!(b, b'.' | b'e' | b'E')) {
        return text.parse::<f64>().map(|v| Operand::F64(v.to_bits())).map_err(|_| refused());
    }
    let whole = text.strip_suffix(['U', 'u']).unwrap_or(text);
    let (body, radix) = match prefix {
        Some(b'x') if hexadecimal => (whole.get(2..).unwrap_or_default(), 16),
        Some(b'b') if text.starts_with('0') => (whole.get(2..).unwrap_or_default(), 2),
        _ if whole.len() > 1 && whole.starts_with('0') => (&whole[1..], 8),
        _ => (whole, 10),
    };
    if !digits(body, radix) {
        return Err(refused());
    }
    u64::from_str_radix(body, radix).map(Operand::Int).map_err(|_| format!("`{text}` has more than 64 bits"))
}

/// The negative of a literal operand.
pub(super) fn negated(operand: Operand) -> Operand {
    match operand {
        Operand::Int(value) => Operand::Int(value.wrapping_neg()),
        Operand::F32(bits) => Operand::F32(bits ^ 1 << 31),
        Operand::F64(bits) => Operand::F64(bits ^ 1 << 63),
        other => other,
    }
}

fn digits(text: &str, radix: u32) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_digit(radix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cases = [
            ("0", Operand::Int(0)),
            ("017", Operand::Int(15)),
            ("0b101", Operand::Int(5)),
            ("0xffU", Operand::Int(255)),
            ("0xFFFFFFFFFFFFFFFF", Operand::Int(u64::MAX)),
            ("4294967295U", Operand::Int(4294967295)),
            ("0f3F800000", Operand::F32(0x3f80_0000)),
            ("0F3f800000", Operand::F32(0x3f80_0000)),
            ("0d3FF0000000000000", Operand::F64(0x3ff0_0000_0000_0000)),
            ("1.5", Operand::F64(1.5f64.to_bits())),
            ("0.5", Operand::F64(0.5f64.to_bits())),
            ("1e3", Operand::F64(1e3f64.to_bits())),
            ("0xE", Operand::Int(14)),
        ];
        for (text, expected) in cases {
            assert_eq!(literal(text), Ok(expected), "{text}");
        }
        assert_eq!(negated(Operand::Int(8)), Operand::Int(-8i64 as u64));
        assert_eq!(negated(Operand::F32(0x3f80_0000)), Operand::F32((-1.0f32).to_bits()));
    }

    #[test]
    fn refusals() {
        for text in
            ["08", "12a", "0x", "0b2", "0f3F8", "0d1", "1.2.3", "0xg", "18446744073709551616", "1_0", "U"]
        {
            assert!(literal(text).is_err(), "{text}");
        }
    }
}
