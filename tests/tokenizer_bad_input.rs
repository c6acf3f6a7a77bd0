//! Damaged vocabularies: a typed error that says where, never a panic.

use std::path::Path;

use abruzzi::Error;
use abruzzi::tokenizer::Tokenizer;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The message of an [`Error::Tokenizer`] or [`Error::Argument`]; anything else fails the test.
fn message<T>(result: Result<T, Error>) -> String {
    match result {
        Err(e @ (Error::Tokenizer { .. } | Error::Argument { .. })) => e.to_string(),
        Err(e) => panic!("another kind of error: {e:?}"),
        Ok(_) => panic!("accepted"),
    }
}

/// A `tiktoken.model` of the 256 single bytes.
fn bytes_model() -> String {
    (0..=255u8).map(|b| format!("{} {b}\n", STANDARD.encode([b]))).collect()
}

#[test]
fn damaged_tiktoken_models_are_refused_by_line() {
    let good = bytes_model();
    let file = Path::new("tiktoken.model");
    assert!(Tokenizer::from_tiktoken_bytes(good.as_bytes(), file, 512).is_ok());
    assert!(Tokenizer::from_tiktoken_bytes(good.replace('\n', "\r\n\n").as_bytes(), file, 512).is_ok());
    let long = STANDARD.encode(vec![b'a'; 5000]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "is empty, expected a base64 token and its rank on each line"),
        (b" \n\n".to_vec(), "is empty, expected a base64 token and its rank on each line"),
        (b"\xff\xfe".to_vec(), "line 1: is not text, expected a base64 token and its rank"),
        (b"IQ== 0\n\xff 1".to_vec(), "line 2: is not text, expected a base64 token and its rank"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "line 1: bad base64 \"version\": Invalid"),
        (b"<!DOCTYPE html>\n<html>".to_vec(), "line 1: bad base64 \"<!DOCTYPE\": Invalid symbol"),
        (b"IQ==".to_vec(), "line 1: \"IQ==\", expected a base64 token and its rank"),
        (b"IQ== 0 0".to_vec(), "line 1: \"IQ== 0 0\", expected a base64 token and its rank"),
        (b"IQ== -1".to_vec(), "line 1: bad rank \"-1\": invalid digit found in string"),
        (b"IQ== 4294967296".to_vec(), "line 1: bad rank \"4294967296\": number too large"),
        (b"IQ== 1.5".to_vec(), "line 1: bad rank \"1.5\": invalid digit found in string"),
        (good.replacen("AQ== 1\n", "AQ= 1\n", 1).into(), "line 2: bad base64 \"AQ=\""),
        (
            good.replacen("AQ== 1\n", &format!("{long} 1\n"), 1).into(),
            "line 2: a token of 5000 bytes, expected 1 to 4096",
        ),
        (good.replacen("AQ== 1\n", "AQ== 0\n", 1).into(), "line 2: rank 0 stands twice"),
        (good.replacen("AQ== 1\n", "AA== 1\n", 1).into(), "line 2: the token \"\\x00\" stands twice"),
        (
            good.replacen("AQ== 1\n", "\nAQ== 700\n", 1).into(),
            "line 3: rank 700, expected 0 to 255: the file has 256 tokens",
        ),
        (
            good.replacen("AQ== 1\n", "YWI= 1\n", 1).into(),
            "the single byte 0x01 is no token, expected all 256",
        ),
        (vec![b'\n'; (16 << 20) + 1], "has 16777217 bytes, expected at most 16777216"),
    ];
    for (bytes, expected) in cases {
        let found = message(Tokenizer::from_tiktoken_bytes(&bytes, file, 512));
        assert!(
            found.starts_with("tiktoken.model: ") && found.contains(expected),
            "{found:?} lacks {expected:?}"
        );
    }
    let found = message(Tokenizer::from_tiktoken_bytes(good.as_bytes(), file, 511));
    assert!(found.contains(
        "has 256 tokens, with 256 reserved ids 512, expected at most the model's vocab_size of 511"
    ));
    assert!(
        message(Tokenizer::from_tiktoken_bytes(good.as_bytes(), file, usize::MAX))
            .starts_with("`vocab_size` is")
    );
    assert!(message(Tokenizer::from_json_bytes(b"{}", file, usize::MAX)).starts_with("`vocab_size` is"));
}

#[test]
fn names_come_from_tokenizer_config_and_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let load = |config: &str| {
        std::fs::write(dir.path().join("tiktoken.model"), bytes_model()).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::from_dir(dir.path(), 512)
    };
    let good = r#"{"added_tokens_decoder": {
        "256": {"content": "<think>", "special": false}, "300": {"content": "[EOS]", "special": true}}}"#;
    let tokenizer = load(good).unwrap();
    assert_eq!(tokenizer.special_id("<think>"), Some(256));
    assert_eq!(tokenizer.decode(&[256, 300]), "<think>");
    assert!(!tokenizer.is_special(256) && tokenizer.is_special(300));
    assert_eq!(tokenizer.special_id("[BOS]"), None);
    assert_eq!(tokenizer.stop_ids(), [300]);
    assert_eq!(load("{}").unwrap().special_id("[BOS]"), Some(256));
    for (config, expected) in [
        ("[", "is not JSON"),
        ("[]", "is not a JSON object"),
        (r#"{"added_tokens_decoder": []}"#, "`added_tokens_decoder` is not an object"),
        (r#"{"added_tokens_decoder": {"x": {}}}"#, "the id \"x\" is not a number"),
        (r#"{"added_tokens_decoder": {"5": {"content": "a"}}}"#, "id 5, expected 256 to 511"),
        (r#"{"added_tokens_decoder": {"512": {"content": "a"}}}"#, "id 512, expected 256 to 511"),
        (r#"{"added_tokens_decoder": {"256": {"content": 7}}}"#, "token 256 has no text in `content`"),
        (r#"{"added_tokens_decoder": {"256": {"content": ""}}}"#, "token 256: a name of 0 bytes"),
        (
            r#"{"added_tokens_decoder": {"256": {"content": "a"}, "257": {"content": "a"}}}"#,
            "\"a\" stands twice",
        ),
        (
            r#"{"added_tokens_decoder": {"256": {"content": "a"}, "0256": {"content": "b"}}}"#,
            "id 256 stands twice",
        ),
        (r#"{"added_tokens_decoder": {"256": {"content": "<|reserved_token_257|>"}}}"#, "stands twice"),
    ] {
        let found = message(load(config));
        assert!(
            found.contains("tokenizer_config.json: ") && found.contains(expected),
            "{found:?} lacks {expected:?}"
        );
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(
        message(Tokenizer::from_dir(empty.path(), 512)).contains("no tiktoken.model and no tokenizer.json")
    );
    std::fs::create_dir(empty.path().join("tiktoken.model")).unwrap();
    assert!(message(Tokenizer::from_dir(empty.path(), 512)).contains("is not a regular file"));
}

/// A small byte-level `tokenizer.json`: 256 bytes, one merge, a silent and a printing control token.
fn json_model() -> Value {
    let visible = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden = (0..=255u8).filter(|&b| !visible(b)).zip('\u{100}'..).map(|(_, c)| c);
    let spelt: Vec<char> = (0..=255u8).filter(|&b| visible(b)).map(char::from).chain(hidden).collect();
    let mut vocab: serde_json::Map<String, Value> =
        spelt.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    vocab.insert("ab".into(), json!(256));
    vocab.insert("<eos>".into(), json!(257));
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [
            {"id": 257, "content": "<eos>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            {"id": 258, "content": "<think>", "special": false, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": 1.0, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [["a", "b"]]},
    })
}

#[test]
fn tokenizer_json_works_and_keeps_control_tokens_out_of_text() {
    let model = json_model().to_string();
    let tokenizer = Tokenizer::from_json_bytes(model.as_bytes(), Path::new("tokenizer.json"), 300).unwrap();
    assert_eq!(tokenizer.encode("abab").unwrap(), [256, 256]);
    for text in ["<eos>ab<think>", "naïve 漢字 \0\u{10FFFF}\r\n", "", " ab ab ab ab ab"] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|&id| id < 257), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
    assert_eq!(tokenizer.special_id("<eos>"), Some(257));
    assert_eq!(tokenizer.decode(&[256, 257, 258, 259, 999]), "ab<think>");
    let start = std::time::Instant::now();
    for piece in ["a", " ", "!", "7", "\n"] {
        tokenizer.encode(&piece.repeat(1 << 20)).unwrap();
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn damaged_tokenizer_json_is_refused_by_field() {
    type Damage = fn(&mut Value);
    let cases: [(Damage, &str); 19] = [
        (|j| *j = json!([]), "is not a JSON object"),
        (|j| j["model"]["type"] = json!("Unigram"), "`model.type` is \"Unigram\", expected \"BPE\""),
        (
            |j| j["model"]["continuing_subword_prefix"] = json!("##"),
            "`model.continuing_subword_prefix` is not empty",
        ),
        (|j| j["normalizer"] = json!({"type": "Lowercase"}), "`normalizer` has a step \"Lowercase\""),
        (
            |j| j["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {}]}),
            "`normalizer` has a step without `type`",
        ),
        (|j| j["normalizer"] = json!({"type": "Sequence"}), "a sequence without `normalizers`"),
        (
            |j| {
                j["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed", "invert": false},
                    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]})
            },
            "`pre_tokenizer` has a step \"Split\"",
        ),
        (|j| j["pre_tokenizer"] = Value::Null, "`pre_tokenizer` has no \"ByteLevel\" step"),
        (|j| j["added_tokens"] = json!(3), "`added_tokens` is not a list"),
        (|j| j["added_tokens"][1]["id"] = json!(257), "`added_tokens[1]`: id 257 stands twice"),
        (|j| j["added_tokens"][1]["id"] = json!(300), "`added_tokens[1]`: id 300, expected a number below"),
        (|j| j["added_tokens"][0]["content"] = json!(null), "`added_tokens[0]`: no text in `content`"),
        (|j| j["model"]["vocab"] = json!(null), "`model.vocab` is not an object"),
        (
            |j| j["model"]["vocab"]["ab"] = json!(1u64 << 40),
            "\"ab\": id 1099511627776, expected a number below",
        ),
        (|j| j["model"]["vocab"]["ab"] = json!(-1), "\"ab\": id -1, expected a number below"),
        (|j| j["model"]["vocab"]["ab"] = json!(3), "id 3 stands twice"),
        (|j| j["model"]["vocab"]["ab"] = json!(258), "\"ab\" has id 258, which is \"<think>\""),
        (|j| j["model"]["vocab"]["漢"] = json!(290), "\"漢\" is not spelt in byte-level characters"),
        (|j| j["model"]["merges"] = json!([["a", "c"]]), "is not a tokenizer this engine can use"),
    ];
    let file = Path::new("tokenizer.json");
    for (damage, expected) in cases {
        let mut json = json_model();
        damage(&mut json);
        let found = message(Tokenizer::from_json_bytes(json.to_string().as_bytes(), file, 300));
        assert!(
            found.starts_with("tokenizer.json: ") && found.contains(expected),
            "{found:?} lacks {expected:?}"
        );
    }
    let mut json = json_model();
    json["model"]["vocab"].as_object_mut().unwrap().remove("a");
    let found = message(Tokenizer::from_json_bytes(json.to_string().as_bytes(), file, 300));
    assert!(found.contains("the single byte 0x61 is no token"), "{found}");
    let deep = "[".repeat(1 << 20);
    for bytes in [b"".as_slice(), b"\xff", b"{", b"<html>", deep.as_bytes()] {
        assert!(message(Tokenizer::from_json_bytes(bytes, file, 300)).contains("is not JSON"));
    }
    assert!(
        message(Tokenizer::from_json_bytes(&vec![b' '; (32 << 20) + 1], file, 300))
            .contains("at most 33554432")
    );
}
