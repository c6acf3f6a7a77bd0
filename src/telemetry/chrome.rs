//! A recorded run as a file that trace viewers open (chrome://tracing, ui.perfetto.dev).

use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::{Log, Recorded, Row, What};
use crate::error::{Error, Result};
use crate::experts::trace::replace_file;

/// How times are to be read.
const CLOCK: &str = "the host's; spans of the device and of copies last until the host saw their end";

pub(super) fn save(log: &Log, path: &Path) -> Result<()> {
    replace_file(path, |file| {
        let to_json = |file: &mut BufWriter<_>, value: &Value| serde_json::to_writer(file, value);
        file.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
        to_json(
            file,
            &json!({
                "producer": concat!("abruzzi ", env!("CARGO_PKG_VERSION")),
                "clock": CLOCK,
                "spans_not_kept": log.dropped,
                "routing_tokens_not_kept": log.dropped_tokens,
            }),
        )?;
        file.write_all(b",\n\"traceEvents\":[\n")?;
        let mut order: Vec<&Recorded> = log.spans.iter().collect();
        order.sort_by_key(|span| (span.begun, span.ended, span.row));
        let mut rows: Vec<Row> = order.iter().map(|span| span.row).collect();
        rows.sort_unstable();
        rows.dedup();
        // One event a line: a list of a million is built nowhere in memory.
        to_json(file, &json!({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "abruzzi"}}))?;
        for row in rows {
            file.write_all(b",\n")?;
            to_json(file, &name(row))?;
        }
        for span in order {
            file.write_all(b",\n")?;
            to_json(file, &event(span))?;
        }
        file.write_all(b"\n]")?;
        if let Some(routing) = log.routing() {
            file.write_all(b",\n\"routing\":")?;
            to_json(file, &routing.to_json_value())?;
        }
        file.write_all(b"}\n")
    })
    .map_err(Error::io(path, "write"))
}

/// The viewer sorts rows by their number.
fn number(row: Row) -> u32 {
    match row {
        Row::Residents => 1,
        Row::Arrived => 2,
        Row::Copies => 3,
        Row::Cpu => 4,
        Row::Session(session) => 10 + session,
    }
}

fn name(row: Row) -> Value {
    let name = match row {
        Row::Residents => "device, residents".to_owned(),
        Row::Arrived => "device, arrived".to_owned(),
        Row::Copies => "copies".to_owned(),
        Row::Cpu => "CPU experts".to_owned(),
        Row::Session(session) => format!("host, session {session}"),
    };
    json!({"ph": "M", "pid": 1, "tid": number(row), "name": "thread_name", "args": {"name": name}})
}

fn event(span: &Recorded) -> Value {
    let name = match span.what {
        What::Layer(layer, part) => format!("L{layer} {part}"),
        What::Expert(id) => format!("L{} E{}", id.layer, id.expert),
        What::Experts(layer, 1) => format!("L{layer} 1 expert"),
        What::Experts(layer, n) => format!("L{layer} {n} experts"),
        What::Other(name) => name.to_owned(),
    };
    // Microseconds; three decimals are exact nanoseconds.
    let mut event = json!({
        "ph": "X",
        "pid": 1,
        "tid": number(span.row),
        "name": name,
        "ts": span.begun as f64 / 1e3,
        "dur": (span.ended - span.begun) as f64 / 1e3,
    });
    if span.bytes > 0 {
        event["args"] = json!({"bytes": span.bytes});
    }
    event
}
