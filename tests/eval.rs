//! Perplexity and divergence: the demo model's figure, itself as its own reference, a damaged copy against plain arithmetic.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use abruzzi::evaluate::{Evaluation, Options, Summary, Windows};
use abruzzi::{DeviceChoice, Engine, Error, SessionOptions};
use common::cli::{abruzzi, fails, interrupt, json_lines, stdout, text};
use common::{demo, oracle};
use tempfile::TempDir;

fn engine(dir: &Path) -> Engine {
    Engine::builder(dir).device(DeviceChoice::Cpu).load().unwrap()
}

fn held_out() -> String {
    std::fs::read_to_string(demo().join("heldout.txt")).unwrap()
}

fn options(window: usize, windows: usize) -> Options {
    let mut options = Options::default();
    options.window = window;
    options.windows = Some(windows);
    options
}

fn evaluate(model: &Engine, reference: Option<&Engine>, options: &Options) -> Summary {
    Evaluation::of_text(model, reference, &held_out(), options).unwrap().run().unwrap()
}

/// A copy of the demo model whose last layer's experts give the negative of what they should: the sign of every FP8 weight
/// of their down projections is flipped.
fn damaged() -> TempDir {
    let dir = common::copy(&demo());
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let experts = tensors.as_object().unwrap().iter().filter(|(name, _)| {
        name.starts_with("model.layers.4.mlp.experts.") && name.ends_with("down_proj.weight")
    });
    let mut flipped = 0;
    for (_, tensor) in experts {
        let at = |i: usize| header + tensor["data_offsets"][i].as_u64().unwrap() as usize;
        bytes[at(0)..at(1)].iter_mut().for_each(|b| *b ^= 0x80);
        flipped += 1;
    }
    assert_eq!(flipped, 32);
    std::fs::write(&file, bytes).unwrap();
    dir
}

#[test]
fn the_demo_model_has_the_loss_that_transformers_measured() {
    // models/demo/README.md: 3.560 nats a token with transformers on the first 16 windows of 257 tokens.
    let summary = evaluate(&engine(&demo()), None, &options(256, 16));
    assert_eq!((summary.windows, summary.tokens), (16, 16 * 256));
    assert!((summary.scores.nll.mean - 3.560).abs() < 5e-4, "{summary:?}");
}

#[test]
fn a_model_is_its_own_reference() {
    let engine = engine(&demo());
    let alone = evaluate(&engine, None, &options(64, 3));
    let summary = evaluate(&engine, Some(&engine), &options(64, 3));
    let beside = summary.scores.reference.unwrap();
    assert_eq!((beside.kl.mean, beside.kl.error), (0.0, Some(0.0)));
    assert_eq!((beside.agreement.mean, beside.agreement.error), (1.0, Some(0.0)));
    assert_eq!((beside.log_prob_difference.mean, beside.nll_increase.mean), (0.0, 0.0));
    assert_eq!((summary.scores.nll, beside.nll), (alone.scores.nll, alone.scores.nll));
    assert_eq!(summary.reference_perplexity(), Some(alone.perplexity()));
    assert_eq!(alone.scores.reference, None);
}

/// ln softmax of a row, by the definition.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().fold(f64::MIN, |most, &logit| most.max(f64::from(logit)));
    let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
    row.iter().map(|&logit| f64::from(logit) - most - sum.ln()).collect()
}

fn most_probable(row: &[f64]) -> usize {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

#[test]
fn a_damaged_copy_against_the_whole_model_as_plain_arithmetic_has_it() {
    let damaged = damaged();
    let (model, reference) = (engine(damaged.path()), engine(&demo()));
    let (window, count) = (40, 3);
    let summary = evaluate(&model, Some(&reference), &options(window, count));

    let ids = model.tokenizer().unwrap().encode(&held_out()).unwrap();
    let vocab = model.config().vocab_size;
    let [mut nll, mut own, mut kl, mut agreed, mut apart] = [0.0; 5];
    for window in ids.chunks(window + 1).take(count) {
        let rows = |engine: &Engine| -> Vec<Vec<f64>> {
            let logits = engine.session(SessionOptions::default()).unwrap().logits(window).unwrap();
            logits.chunks(vocab).map(log_softmax).collect()
        };
        for ((p, q), &token) in rows(&reference).iter().zip(&rows(&model)).zip(&window[1..]) {
            nll -= q[token as usize];
            own -= p[token as usize];
            kl += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            agreed += f64::from(u8::from(most_probable(p) == most_probable(q)));
            apart += (p[token as usize] - q[token as usize]).abs();
        }
    }
    let tokens = (window * count) as f64;
    let beside = summary.scores.reference.unwrap();
    for (what, found, expected) in [
        ("nll", summary.scores.nll.mean, nll),
        ("reference's nll", beside.nll.mean, own),
        ("increase", beside.nll_increase.mean, nll - own),
        ("kl", beside.kl.mean, kl),
        ("agreement", beside.agreement.mean, agreed),
        ("difference", beside.log_prob_difference.mean, apart),
    ] {
        let expected = expected / tokens;
        // The plain way computes one token more a window, so matrices are multiplied in other blocks.
        assert!((found - expected).abs() < 1e-4 * expected.abs(), "{what}: {found} for {expected}");
    }
    assert!(beside.kl.mean > 0.05 && beside.kl.error.unwrap() > 0.0, "{beside:?}");
    assert!((0.0..1.0).contains(&beside.agreement.mean), "{beside:?}");
    assert!(beside.log_prob_difference.mean >= beside.nll_increase.mean.abs());
}

#[test]
fn windows_begin_afresh_and_long_ones_are_read_in_blocks() {
    let engine = engine(&demo());
    let text = held_out();
    let mut evaluation = Evaluation::of_text(&engine, None, &text, &options(300, 2)).unwrap();
    let scores: Vec<f64> = evaluation.by_ref().map(|window| window.unwrap().nll).collect();
    assert_eq!(scores.len(), 2);
    let summary = evaluation.summary();
    assert!((summary.scores.nll.mean - (scores[0] + scores[1]) / 2.0).abs() < 1e-12);

    // The second window alone, in one pass.
    let ids = evaluation.windows().get(1);
    let vocab = engine.config().vocab_size;
    let logits = engine.session(SessionOptions::default()).unwrap().logits(&ids[..300]).unwrap();
    let rows = logits.chunks(vocab).zip(&ids[1..]);
    let nll: f64 = rows.map(|(row, &token)| -log_softmax(row)[token as usize]).sum();
    assert!((scores[1] - nll / 300.0).abs() < 1e-4, "{} for {}", scores[1], nll / 300.0);
}

#[test]
fn scores_do_not_depend_on_the_number_of_threads() {
    let engine = engine(&demo());
    let run = |threads| {
        let mut options = options(32, 2);
        options.threads = threads;
        evaluate(&engine, Some(&engine), &options)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_cannot_be_evaluated() {
    let demo = engine(&demo());
    let refused = |reference: Option<&Engine>, text: &str, options: &Options| {
        let error = Evaluation::of_text(&demo, reference, text, options).map(drop).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error:?}");
        error.to_string()
    };
    let said = refused(None, "", &Options::default());
    assert!(said.starts_with("`text` is empty, expected at least 257"), "{said}");
    let said = refused(None, "In the beginning", &Options::default());
    assert!(said.starts_with("`text` has 3 tokens, expected at least 257"), "{said}");
    let said = refused(None, "In the beginning", &options(0, 1));
    assert!(said.starts_with("`window` is 0"), "{said}");
    let many = vec![5; demo.config().max_context + 2];
    let options = options(many.len() - 1, 1);
    let error = Evaluation::new(&demo, None, Windows::new(many, &options).unwrap(), &options);
    let said = error.map(drop).unwrap_err().to_string();
    assert_eq!(said, "`window` is 131073, expected 1 to the 131072 tokens of the model's context");

    // Another size of vocabulary; and of the same size, other words.
    let small = engine(&oracle("k2-bf16"));
    let windows = Windows::new(vec![1, 2, 3], &options_of(2)).unwrap();
    let error = Evaluation::new(&demo, Some(&small), windows, &options_of(2)).map(drop).unwrap_err();
    let said = error.to_string();
    assert!(said.starts_with("`reference` has a vocabulary of 320 tokens, the model has 4096"), "{said}");
    let other = other_words();
    let said = refused(Some(&engine(other.path())), "In the beginning", &options_of(2));
    assert!(said.starts_with("`reference` splits the text into other tokens than the model"), "{said}");
    // Without a tokenizer nobody knows whether its tokens are the same.
    let error = Evaluation::of_text(&demo, Some(&small), "In the beginning", &options_of(2)).map(drop);
    assert!(matches!(error.unwrap_err(), Error::Tokenizer { .. }));
}

fn options_of(window: usize) -> Options {
    options(window, 1)
}

/// The demo model with the ids of two words changed over: " the" and " beginning".
fn other_words() -> TempDir {
    let dir = common::copy(&demo());
    let file = dir.path().join("tiktoken.model");
    let text = std::fs::read_to_string(&file).unwrap();
    let ids =
        Engine::builder(demo()).load().unwrap().tokenizer().unwrap().encode("In the beginning").unwrap();
    let [first, second] = [ids[1], ids[2]].map(|id| id as usize);
    let mut words: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    words.swap(first, second);
    let lines: Vec<String> = words.iter().enumerate().map(|(id, word)| format!("{word} {id}\n")).collect();
    std::fs::write(&file, lines.concat()).unwrap();
    dir
}

#[test]
fn a_cancelled_evaluation_ends() {
    let engine = engine(&demo());
    let options = options(16, 4);
    let mut evaluation = Evaluation::of_text(&engine, None, &held_out(), &options).unwrap();
    assert!(evaluation.next().unwrap().is_ok());
    options.cancel.cancel();
    assert!(matches!(evaluation.next(), Some(Err(Error::Cancelled))));
    assert!(evaluation.next().is_none());
    assert_eq!((evaluation.summary().windows, evaluation.summary().tokens), (1, 16));
}

/// The command on the demo model and its held-out text.
fn command<'a>(file: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["eval", "--device", "cpu", "-f", file], args].concat()
}

#[test]
fn the_command_prints_a_table_or_json() {
    let damaged = damaged();
    let (whole, file) = (demo(), demo().join("heldout.txt"));
    let (file, whole, damaged) =
        (file.to_str().unwrap(), whole.to_str().unwrap(), damaged.path().to_str().unwrap());
    let pair = ["-m", damaged, "--reference", whole, "--window", "20", "--windows", "3"];
    let args = command(file, &pair);
    let events = json_lines(&stdout(&[&args[..], &["--json"]].concat()));
    let [windows @ .., done] = &events[..] else { panic!("no events") };
    assert_eq!(windows.len(), 3);
    for (i, window) in windows.iter().enumerate() {
        assert_eq!((&window["event"], &window["window"]), (&"window".into(), &i.into()));
        assert!(window["nll"].as_f64().unwrap() > 0.0 && window["reference"]["kl"].as_f64().unwrap() > 0.0);
    }
    let expected = evaluate(&engine(damaged.as_ref()), Some(&engine(&demo())), &options(20, 3));
    let beside = expected.scores.reference.unwrap();
    assert_eq!(done["event"], "done");
    assert_eq!(
        (&done["windows"], &done["tokens"], &done["window_tokens"]),
        (&3.into(), &60.into(), &20.into())
    );
    assert_eq!(done["text_tokens"], 59_997);
    // The test's JSON reader may be off by the last bit.
    let same = |found: &serde_json::Value, value: f64| {
        assert!((found.as_f64().unwrap() - value).abs() <= 1e-12 * value.abs(), "{found} for {value}");
    };
    same(&done["perplexity"], expected.perplexity());
    same(&done["reference_perplexity"], expected.reference_perplexity().unwrap());
    same(&done["nll"]["mean"], expected.scores.nll.mean);
    for (name, value) in [
        ("kl", beside.kl),
        ("agreement", beside.agreement),
        ("log_prob_difference", beside.log_prob_difference),
        ("nll_increase", beside.nll_increase),
        ("nll", beside.nll),
    ] {
        same(&done["reference"][name]["mean"], value.mean);
        same(&done["reference"][name]["error"], value.error.unwrap());
    }

    let table = stdout(&args);
    assert!(table.contains("59,997 tokens, 60 of them predicted in 3 windows of 20"), "{table}");
    for expected in [
        format!("{:.3}", expected.perplexity()),
        format!("{:.4}", expected.scores.nll),
        format!("KL(reference ‖ model){:17}{:.5} nats", "", beside.kl),
        format!("{:.4}\n", beside.agreement),
    ] {
        assert!(table.contains(&expected), "no {expected} in\n{table}");
    }
    // Without a reference nothing is said of one.
    let alone = stdout(&command(file, &["--window", "20", "--windows", "1"]));
    assert!(alone.contains("perplexity") && !alone.contains("reference"), "{alone}");
}

#[test]
fn the_command_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, short) = (dir.path().join("empty.txt"), dir.path().join("short.txt"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&short, "In the beginning").unwrap();
    let (empty, short) = (empty.to_str().unwrap(), short.to_str().unwrap());
    fails(&["eval"], 2, "--file <FILE>");
    fails(&command(empty, &[]), 2, "--file (-f) is empty, expected at least 257");
    fails(&command(short, &[]), 2, "--file (-f) has 3 tokens, expected at least 257");
    fails(&command(short, &["--window", "0"]), 2, "--window is 0");
    fails(&command(short, &["--window", "-1"]), 2, "'--window <TOKENS>'");
    fails(&command(short, &["--window", "2", "--windows", "0"]), 2, "--windows is 0");
    fails(&command(dir.path().to_str().unwrap(), &[]), 1, "it is not a regular file");
    fails(&command("/nonexistent", &[]), 1, "cannot read the text /nonexistent");
    fails(&command(short, &["-m", "/nonexistent"]), 1, "/nonexistent/config.json");
    let untold = oracle("k2-bf16");
    let untold = untold.to_str().unwrap();
    fails(&command(short, &["--window", "2", "--reference", untold]), 1, "has no tiktoken.model");
    let other = other_words();
    let other = other.path().to_str().unwrap();
    let said = "--reference splits the text into other tokens than the model, from token 1 on";
    fails(&command(short, &["--window", "2", "--reference", other]), 2, said);
}

#[test]
fn an_interrupt_ends_the_command_with_130() {
    let file = demo().join("heldout.txt");
    let args = command(file.to_str().unwrap(), &["--window", "16", "--json"]);
    let mut child = abruzzi(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut first).unwrap();
    interrupt(&child);
    let rest: Vec<String> = lines.lines().map(|line| line.unwrap()).collect();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130));
    assert_eq!(text(&out.stderr), "interrupted\n");
    for line in [first].iter().chain(&rest) {
        assert_eq!(json_lines(line)[0]["event"], "window", "{line}");
    }
}
