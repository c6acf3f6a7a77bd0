//! A chart of hit rate and speed against slots.

use super::Report;
use crate::chart::{Area, Axis, Drawing, Panel, Point, Series, Tick};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 330.0;
/// Left and right edges of the two panels.
const PANELS: [(f64, f64); 2] = [(64.0, 456.0), (544.0, 936.0)];

/// Draws reports of one machine as SVG: hit rate on the left, tokens a second on the right, a line for each policy. `title`
/// says what was replayed.
pub fn chart(title: &str, reports: &[Report]) -> String {
    type Value = fn(&Report) -> f64;
    let speeds = Axis::from_zero(reports.iter().map(|r| r.tok_s));
    let panels: [(&str, Axis, Value); 2] = [
        ("hit rate, %", Axis::from_zero([100.0]), |r| 100.0 * r.hit_rate),
        ("tokens a second (modelled)", speeds, |r| r.tok_s),
    ];
    let mut drawing = Drawing::new(WIDTH, HEIGHT, PANELS[0].0, title);
    for ((title, y, value), (left, right)) in panels.into_iter().zip(PANELS) {
        drawing.panel(&Panel {
            area: Area { left, right, top: TOP, bottom: BOTTOM },
            title,
            // Slots are asked for in ratios (6, 12, 24 %).
            x: Axis::logarithmic(reports.iter().map(|r| r.slots as f64)),
            x_title: "slots on the GPU, and their share of all experts",
            x_ticks: ticks(reports),
            y,
            series: &lines(reports, value),
        });
    }
    let across = (PANELS[0].0, PANELS[1].1);
    drawing.legend(&lines(reports, |r| r.tok_s), across, HEIGHT - 16.0);
    drawing.finish()
}

/// A line for each policy, in the order they come.
fn lines(reports: &[Report], value: impl Fn(&Report) -> f64) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for report in reports {
        let point = Point { x: report.slots as f64, y: value(report), note: String::new() };
        match lines.iter_mut().find(|line| line.name == report.policy) {
            Some(line) => line.points.push(point),
            None => lines.push(Series {
                name: report.policy.clone(),
                points: vec![point],
                // What knows the future is no policy to choose.
                dashed: report.policy == "belady",
            }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    lines
}

/// Each number of slots that was replayed, and its share.
fn ticks(reports: &[Report]) -> Vec<Tick> {
    let mut slots: Vec<(usize, f64)> = reports.iter().map(|r| (r.slots, r.resident_share)).collect();
    slots.sort_by_key(|s| s.0);
    slots.dedup_by_key(|s| s.0);
    let tick = |(slots, share): (usize, f64)| {
        let percent = 100.0 * share;
        let digits = if percent < 9.95 { 1 } else { 0 };
        Tick { at: slots as f64, labels: vec![slots.to_string(), format!("{percent:.digits$} %")] }
    };
    slots.into_iter().map(tick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_draw_is_an_empty_chart() {
        let svg = chart("a < b & \"c\"", &[]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
        assert!(!svg.contains("<circle") && svg.contains("hit rate"));
    }
}
