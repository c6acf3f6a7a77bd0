//! `abruzzi bench` through the real binary.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use common::cli::{abruzzi, fails, interrupt, json_lines, output, stdout, succeeded, text};
use common::{checkpoint, root};
use serde_json::Value;

#[test]
fn every_depth_has_its_rates_and_what_limits_them() {
    let args = ["bench", "--device", "cpu", "-p", "24", "-n", "6", "-d", "40,0,40", "-r", "3", "--json"];
    let events = json_lines(&stdout(&args));
    let [model, tests @ .., done] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&model["event"], &done["event"]), (&"model".into(), &"done".into()));
    assert_eq!((&model["model"], &model["bytes"]), (&"demo".into(), &18_911_252.into()));
    assert!(model["threads"].as_u64().is_some_and(|n| n > 0), "{model}");
    let (load, first) =
        (model["load_seconds"].as_f64().unwrap(), model["first_token_seconds"].as_f64().unwrap());
    assert!(0.0 < load && load < first, "{model}");
    assert!(done["peak_memory"].as_u64().is_some_and(|n| n > 1 << 20), "{done}");

    // Each depth once, in order.
    let order: Vec<(&str, u64)> =
        tests.iter().map(|t| (t["test"].as_str().unwrap(), t["depth"].as_u64().unwrap())).collect();
    assert_eq!(order, [("pp24", 0), ("tg6", 0), ("pp24", 40), ("tg6", 40)]);
    for test in tests {
        let number = |name: &str| test[name].as_f64().unwrap_or_else(|| panic!("{name} in {test}"));
        let (least, median, greatest) = (number("tok_s_least"), number("tok_s"), number("tok_s_greatest"));
        assert!(0.0 < least && least <= median && median <= greatest, "{test}");
        if test["phase"] == "prefill" {
            assert_eq!(test["bytes_per_token"], Value::Null, "{test}");
            continue;
        }
        assert!((number("read_bytes_s") / (number("bytes_per_token") * median) - 1.0).abs() < 1e-9, "{test}");
        let share = number("read_bytes_s") / number("plain_read_bytes_s");
        assert!((share / number("limit_share") - 1.0).abs() < 1e-9, "{test}");
        assert!(number("plain_read_bytes_s") > 1e6, "{test}");
    }
    // The weights, and five layers of 128 + 32 numbers for each token before the middle of what is decoded.
    let weights = &json_lines(&stdout(&["inspect", "--json"]))[0]["bytes_per_token"];
    let read = |i: usize| tests[i]["bytes_per_token"].as_u64().unwrap() - weights.as_u64().unwrap();
    assert_eq!((read(1), read(3)), (3 * 5 * 160 * 4, 43 * 5 * 160 * 4));
}

#[test]
fn the_table_is_markdown_and_nothing_else_is_said() {
    let args = ["bench", "--device", "cpu", "-p", "8", "-n", "2", "-d", "0", "-r", "2"];
    let out = output(&args);
    let table = succeeded(&out, &args);
    assert_eq!(text(&out.stderr), "");
    let (facts, lines) = table.split_once("\n\n").unwrap();
    assert!(facts.lines().count() == 4 && facts.lines().all(|l| l.starts_with("- ")), "{facts}");
    assert!(facts.contains("demo: kimi_k2, 16,773,248 parameters") && facts.contains("fp8-block"), "{facts}");
    let columns: Vec<usize> = lines.lines().map(|l| l.matches('|').count()).collect();
    assert_eq!(columns, [9; 4], "{lines}");
    assert!(lines.contains("| pp8 | 0 |") && lines.contains("| tg2 | 0 |"), "{lines}");
}

#[test]
fn a_phase_of_no_tokens_is_left_out() {
    for (prompt, decoded, expected) in [("0", "6", "tg6"), ("24", "0", "pp24")] {
        let args =
            ["bench", "--device", "cpu", "-p", prompt, "-n", decoded, "-d", "0,40", "-r", "1", "--json"];
        let events = json_lines(&stdout(&args));
        let names: Vec<&str> = events.iter().filter_map(|e| e["test"].as_str()).collect();
        assert_eq!(names, [expected; 2]);
    }
}

#[test]
fn a_model_without_a_vocabulary_of_text_is_measured_too() {
    let model = checkpoint("v3-groups-fp8");
    let args = [
        "bench",
        "-m",
        model.to_str().unwrap(),
        "--device",
        "cpu",
        "-p",
        "4",
        "-n",
        "2",
        "-d",
        "0",
        "--json",
    ];
    let events = json_lines(&stdout(&args));
    assert_eq!(events[0]["architecture"], "deepseek_v3");
    assert_eq!(events.len(), 4);
}

#[test]
fn what_cannot_be_measured_is_refused_by_the_flags_name() {
    for (args, expected) in [
        (&["-r", "0"][..], "--rounds (-r) is 0, expected at least 1"),
        (&["-p", "0", "-n", "0"], "--prompt-tokens (-p) is 0, and so is --tokens"),
        (&["-d", "131072"], "--depth (-d) is 131072, expected at most 130559"),
        (&["-d", "0,130560"], "--depth (-d) is 130560, expected at most 130559"),
        (&["-d", "18446744073709551615"], "--depth (-d) is 18446744073709551615"),
        (&["-p", "200000"], "--prompt-tokens (-p) needs a context of 200001, the model's is 131072"),
        (&["-n", "18446744073709551615"], "--tokens needs a context of 18446744073709551615"),
        (&["-d", "-1"], "'--depth <TOKENS>'"),
        (&["-d", "1,x"], "'--depth <TOKENS>'"),
        (&["-r", "-2"], "'--rounds <N>'"),
    ] {
        fails(&[&["bench"], args].concat(), 2, expected);
    }
    fails(&["bench", "-m", "/nonexistent"], 1, "/nonexistent: cannot open the checkpoint: ");
}

#[test]
fn an_interrupt_ends_it_with_130() {
    let model = root().join("models/demo");
    let args =
        ["bench", "-m", model.to_str().unwrap(), "--device", "cpu", "-p", "8", "-n", "100000", "-d", "0"];
    let mut child = abruzzi(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The prompt's rates are there: it is decoding.
    assert!(lines.any(|line| line.unwrap().starts_with("| pp8 |")));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut stderr = String::new();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "interrupted\n");
    assert_eq!(lines.count(), 0, "a line of what was not finished");
}
