//! A chart of hit rate and speed against slots, as SVG.

use std::fmt::Write;

use super::Report;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 330.0;
/// Left and right edges of the two panels.
const PANELS: [(f64, f64); 2] = [(64.0, 456.0), (544.0, 936.0)];
/// Told apart by colour-blind readers too (Okabe and Ito); a seventh policy begins again.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// Draws reports of one machine: hit rate on the left, tokens a second on the right, a line for each policy. `title`
/// says what was replayed.
pub fn chart(title: &str, reports: &[Report]) -> String {
    let mut policies: Vec<&str> = Vec::new();
    for report in reports {
        if !policies.contains(&report.policy.as_str()) {
            policies.push(&report.policy);
        }
    }
    let most = reports.iter().map(|r| r.slots).max().unwrap_or(1) as f64;
    let least = reports.iter().map(|r| r.slots).min().unwrap_or(1).max(1) as f64;
    let fastest = reports.iter().map(|r| r.tok_s).fold(0.0, f64::max);
    let mut out = String::new();
    let mut draw = |text: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{text}");
    };
    draw(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">"##
    ));
    draw(r##"<rect width="100%" height="100%" fill="#fff"/>"##.to_owned());
    draw(format!(r##"<text x="{}" y="26" font-size="15">{}</text>"##, PANELS[0].0, escaped(title)));
    type Value = fn(&Report) -> f64;
    let panels: [(&str, f64, Value); 2] = [
        ("hit rate, %", 100.0, |r| 100.0 * r.hit_rate),
        ("tokens a second (modelled)", fastest, |r| r.tok_s),
    ];
    for ((name, highest, value), (left, right)) in panels.into_iter().zip(PANELS) {
        let step = round_step(highest / 5.0);
        let ceiling = (highest / step).ceil().max(1.0) * step;
        let y = |v: f64| BOTTOM - (BOTTOM - TOP) * v / ceiling;
        // Slots are asked for in ratios (6, 12, 24 %), so they lie on a logarithmic axis.
        let span = (most / least).ln();
        let x = |slots: usize| {
            let along = if span > 0.0 { (slots as f64 / least).ln() / span } else { 0.5 };
            left + (right - left) * (0.04 + 0.92 * along)
        };
        draw(format!(r##"<text x="{left}" y="{}">{name}</text>"##, TOP - 12.0));
        for i in 0..=(ceiling / step).round() as u32 {
            let v = f64::from(i) * step;
            let at = y(v);
            draw(format!(r##"<path d="M{left} {at:.1}H{right}" stroke="#ddd"/>"##));
            draw(format!(r##"<text x="{}" y="{:.1}" text-anchor="end">{v}</text>"##, left - 8.0, at + 4.0));
        }
        let mut ticks: Vec<(usize, f64)> = reports.iter().map(|r| (r.slots, r.resident_share)).collect();
        ticks.sort_by_key(|t| t.0);
        ticks.dedup_by_key(|t| t.0);
        let mut free = 0.0;
        for (slots, share) in ticks {
            let at = x(slots);
            draw(format!(r##"<path d="M{at:.1} {BOTTOM}v5" stroke="#222"/>"##));
            if at >= free {
                draw(format!(
                    r##"<text x="{at:.1}" y="{}" text-anchor="middle">{slots}</text>"##,
                    BOTTOM + 18.0
                ));
                let percent = 100.0 * share;
                let digits = if percent < 9.95 { 1 } else { 0 };
                let label =
                    format!(r##"<text x="{at:.1}" y="{}" text-anchor="middle" fill="#777">"##, BOTTOM + 33.0);
                draw(format!("{label}{percent:.digits$} %</text>"));
                free = at + 38.0;
            }
        }
        draw(format!(r##"<path d="M{left} {TOP}V{BOTTOM}H{right}" fill="none" stroke="#222"/>"##));
        let middle = (left + right) / 2.0;
        let label = "slots on the GPU, and their share of all experts";
        draw(format!(r##"<text x="{middle}" y="{}" text-anchor="middle">{label}</text>"##, BOTTOM + 52.0));
        for (i, policy) in policies.iter().enumerate() {
            let mut points: Vec<_> = reports.iter().filter(|r| r.policy == *policy).collect();
            points.sort_by_key(|r| r.slots);
            let colour = COLOURS[i % COLOURS.len()];
            let line: Vec<String> =
                points.iter().map(|r| format!("{:.1},{:.1}", x(r.slots), y(value(r)))).collect();
            draw(format!(
                r##"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{}/>"##,
                line.join(" "),
                dashes(policy)
            ));
            for r in &points {
                let (x, y) = (x(r.slots), y(value(r)));
                draw(format!(r##"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"##));
            }
        }
    }
    for (i, policy) in policies.iter().enumerate() {
        let x = PANELS[0].0 + 120.0 * i as f64;
        let (y, colour) = (HEIGHT - 16.0, COLOURS[i % COLOURS.len()]);
        let line =
            format!(r##"<path d="M{x} {y}h24" stroke="{colour}" stroke-width="2"{}/>"##, dashes(policy));
        draw(line);
        draw(format!(r##"<text x="{}" y="{}">{}</text>"##, x + 30.0, y + 4.0, escaped(policy)));
    }
    draw("</svg>".to_owned());
    out
}

/// What knows the future is no policy to choose.
fn dashes(policy: &str) -> &'static str {
    if policy == "belady" { r##" stroke-dasharray="6 4""## } else { "" }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    if !least.is_finite() || least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (least, step) in
            [(20.0, 20.0), (21.0, 50.0), (7.0, 10.0), (0.3, 0.5), (0.0, 1.0), (f64::NAN, 1.0)]
        {
            assert!((round_step(least) - step).abs() < 1e-9, "{least}");
        }
    }

    #[test]
    fn nothing_to_draw_is_an_empty_chart() {
        let svg = chart("a < b & \"c\"", &[]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
    }
}
