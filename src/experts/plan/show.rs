//! The plan as a table for people.

use std::fmt;

use super::{Budget, Plan, Trunk};

/// Bytes with thousands separated: sums can be checked by eye.
fn exact(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn gb(n: u64) -> String {
    format!("{:.2} GB", n as f64 / 1e9)
}

fn table(f: &mut fmt::Formatter<'_>, title: &str, budget: &Budget) -> fmt::Result {
    let total = budget.total.max(1) as f64;
    let mut row = |name: &str, bytes: u64, note: &str| {
        let percent = bytes as f64 / total * 100.0;
        writeln!(f, "{name:<24}{:>22} B{:>14}{percent:>9.2} %{note}", exact(bytes), gb(bytes))
    };
    row(title, budget.total, "")?;
    for part in &budget.parts {
        row(&format!("  {}", part.name), part.bytes, if part.estimate { "  estimate" } else { "" })?;
    }
    Ok(())
}

/// What is resident, and what crosses the link for each token.
impl fmt::Display for Trunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whether = |yes: bool| if yes { "resident" } else { "on the host" };
        let layers = match self.resident_layers {
            0 => "of no layer".to_owned(),
            n if n == self.layers => "of all layers".to_owned(),
            n => format!("of layers 0 to {}", n - 1),
        };
        write!(
            f,
            "trunk {layers} ({} of {}) resident, head {}, embedding {}; {} cross the link for each token",
            self.resident_layers,
            self.layers,
            whether(self.head_resident),
            whether(self.embedding_resident),
            gb(self.streamed_bytes)
        )
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "context {} of {} tokens", exact(self.context as u64), exact(self.max_context as u64))?;
        if self.sessions > 1 {
            write!(f, ", {} sessions", self.sessions)?;
        }
        writeln!(f, "; prefill in chunks of {}\n", exact(self.chunk as u64))?;
        table(f, "GPU memory", &self.vram)?;
        writeln!(f)?;
        table(f, "host memory", &self.host)?;
        writeln!(f)?;
        self.placement(f)?;
        writeln!(f)?;
        self.expectations(f)
    }
}

impl Plan {
    fn placement(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (slots, trunk, below) = (&self.slots, &self.trunk, &self.below);
        if slots.count > 0 {
            writeln!(
                f,
                "{} slots of {} B: {:.1} a layer, {:.2} % of {} experts; at least {} are needed",
                exact(slots.count),
                exact(slots.bytes),
                slots.per_layer,
                slots.resident * 100.0,
                exact(below.experts),
                slots.least
            )?;
            writeln!(f, "prefill borrows up to {} of them", exact(slots.lent_to_prefill))?;
        }
        if below.host < below.experts {
            writeln!(f, "host memory has room for {} experts", exact(below.host))?;
        }
        if slots.held > 0 {
            writeln!(f, "{} experts have no other place than their slot and stay", exact(slots.held))?;
        }
        if below.file > 0 {
            writeln!(f, "{} experts are in the file tier alone", exact(below.file))?;
        }
        if trunk.host_bytes == 0 {
            return writeln!(f, "the trunk is in GPU memory");
        }
        writeln!(f, "{trunk}")?;
        writeln!(f, "from --vram {} on all of it is resident", trunk.whole_from_vram)
    }

    fn expectations(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = &self.expected;
        writeln!(
            f,
            "modelled, not measured: hit rates are published curves of other models, times are bytes by rates"
        )?;
        writeln!(
            f,
            "a token needs {} of experts; {:.1} % hit a slot{}",
            gb(expected.routed_bytes),
            expected.hit_rate * 100.0,
            match self.below.file {
                0 => String::new(),
                _ => format!(", {:.1} % a slot or host memory", expected.hit_rate_with_host * 100.0),
            }
        )?;
        writeln!(f, "{:<44}{:>10}{:>10}", "at most, tok/s", "serial", "ideal")?;
        for bound in &expected.decode {
            let who = if bound.cpu { "link and CPU" } else { "link alone" };
            let name = format!("  decode at {} tokens, {who}", exact(bound.depth as u64));
            writeln!(f, "{name:<44}{:>10.2}{:>10.2}", bound.serial, bound.ideal)?;
        }
        if expected.prefill > 0.0 {
            writeln!(
                f,
                "{:<44}{:>10}{:>10.1}",
                "  prefill, all without a slot once a chunk", "", expected.prefill
            )?;
        }
        Ok(())
    }
}
