//! Byte sizes and rates as people write them: `80GiB`, `500MB`, `55GB/s`.

/// Units a size may have. A bare letter (`80G`) is refused: it means one thing to some programs, another to others.
const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// A size in bytes: a number, perhaps with a fraction, and a unit.
pub fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let refuse = || format!("expected a size such as 80GiB, 500MB or 1073741824, not {text:?}");
    let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let &(_, scale) = known.ok_or_else(refuse)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') {
        return Err(refuse());
    }
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    // Whole numbers stay exact however large; a fraction is rounded to a byte.
    let part = match fraction {
        "" => 0,
        digits => (format!("0.{digits}").parse::<f64>().map_err(|_| refuse())? * scale as f64).round() as u64,
    };
    whole.checked_mul(scale).and_then(|n| n.checked_add(part)).ok_or_else(|| format!("{text} is too large"))
}

/// A rate in bytes a second: a size, then `/s`.
pub fn rate(text: &str) -> Result<f64, String> {
    let refuse = || format!("expected a rate such as 55GB/s, not {text:?}");
    let size = text.trim().strip_suffix("/s").ok_or_else(refuse)?;
    match bytes(size).map_err(|_| refuse())? {
        0 => Err("a rate of 0 moves nothing".to_owned()),
        bytes => Ok(bytes as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("12B", 12),
            ("3kB", 3_000),
            ("3KiB", 3_072),
            ("500MB", 500_000_000),
            ("80GiB", 80 << 30),
            ("80 gib", 80 << 30),
            ("2TiB", 2 << 40),
            ("1.5GiB", 3 << 29),
            ("0.1GB", 100_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size() {
        for text in ["", "GiB", "80G", "80Gb/s", "-1GB", "1.GB", ".5GB", "1.2.3GB", "1e9", "GB80", "ten"] {
            assert!(bytes(text).unwrap_err().contains("expected a size"), "{text}");
        }
        assert!(bytes("20000000TiB").unwrap_err().contains("too large"));
    }

    #[test]
    fn rates() {
        assert_eq!(rate("55GB/s"), Ok(55e9));
        assert_eq!(rate("1.5TB/s"), Ok(1.5e12));
        for text in ["55GB", "55", "/s", "fast", "55Gb/h"] {
            assert!(rate(text).unwrap_err().contains("expected a rate"), "{text}");
        }
        assert!(rate("0GB/s").is_err());
    }
}
