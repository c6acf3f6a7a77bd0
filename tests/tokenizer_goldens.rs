//! The encoder against Python's tiktoken, and round trips, over the demo model's vocabulary.

use std::path::Path;

use abruzzi::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;

fn demo() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    Tokenizer::from_dir(&dir, 4096).unwrap()
}

/// `[[piece, times], …]`, put together.
fn text_of(case: &Value) -> String {
    let parts = case["text"].as_array().unwrap();
    parts.iter().map(|part| part[0].as_str().unwrap().repeat(part[1].as_u64().unwrap() as usize)).collect()
}

/// Compares with `[id or [id, times], …]`, or with a count and a weighted sum where the list would be long.
fn assert_ids(expected: &Value, ids: &[u32], case: &Value) {
    let what = &case["text"];
    let Some(list) = expected.as_array() else {
        let sum: u64 = ids.iter().enumerate().map(|(n, &id)| u64::from(id) * (n as u64 % 1009 + 1)).sum();
        assert_eq!(ids.len() as u64, expected["count"].as_u64().unwrap(), "{what}");
        assert_eq!(sum, expected["sum"].as_u64().unwrap(), "{what}");
        return;
    };
    let mut all = Vec::new();
    for entry in list {
        let (id, times) = match entry.as_array() {
            Some(run) => (run[0].as_u64().unwrap(), run[1].as_u64().unwrap()),
            None => (entry.as_u64().unwrap(), 1),
        };
        all.extend(std::iter::repeat_n(id as u32, times as usize));
    }
    assert!(all == ids, "{what}: expected {} ids, found {}", all.len(), ids.len());
}

#[test]
fn encodes_as_python_tiktoken_does() {
    let tokenizer = demo();
    let goldens: Value = serde_json::from_str(include_str!("fixtures/tokenizer/goldens.json")).unwrap();
    let cases = goldens["cases"].as_array().unwrap();
    assert!(cases.len() > 200);
    for case in cases {
        let text = text_of(case);
        let ids = tokenizer.encode(&text).unwrap();
        assert_ids(&case["ids"], &ids, case);
        assert!(tokenizer.decode(&ids) == text, "{} does not survive the way back", case["text"]);
    }
}

/// Four times the text may not take much more than four times as long: quadratic work would take sixteen times. The
/// factor of ten leaves room for a busy machine, and the quarter second for what is too short to be measured; both
/// sides of the comparison are the best of three, which a pause of the machine would have to hit three times.
#[test]
fn time_grows_with_the_text_not_with_its_square() {
    let tokenizer = demo();
    let best = |text: &str| {
        let once = || {
            let start = std::time::Instant::now();
            let ids = tokenizer.encode(text).unwrap();
            let took = start.elapsed();
            assert!(tokenizer.decode(&ids) == text, "{:?}", text.chars().next());
            took
        };
        (0..3).map(|_| once()).min().unwrap()
    };
    for piece in [
        "a", "A", " ", "\n", "!", "7", "漢", "\u{301}", "aA", "ʰ", "\u{1c}", " \u{301}", "'s", "\u{feff}",
        "\0",
    ] {
        let text = |bytes: usize| piece.repeat(bytes / piece.len());
        let (short, long) = (best(&text(1 << 18)), best(&text(1 << 20)));
        let limit = short * 10 + std::time::Duration::from_millis(250);
        assert!(long < limit, "{piece:?}: 256 kB take {short:?}, 1 MB takes {long:?}");
    }
}

#[test]
fn control_tokens_have_kimis_ids_and_no_text() {
    let tokenizer = demo();
    for (name, id) in [
        ("[BOS]", 3840),
        ("[EOS]", 3841),
        ("<|im_end|>", 3842),
        ("<|im_user|>", 3843),
        ("<|im_assistant|>", 3844),
        ("<|reserved_token_3845|>", 3845),
        ("<|im_system|>", 3850),
        ("<|im_middle|>", 3857),
        ("[UNK]", 4094),
        ("[PAD]", 4095),
    ] {
        assert_eq!(tokenizer.special_id(name), Some(id), "{name}");
        assert!(tokenizer.is_special(id));
        assert_eq!(tokenizer.token_bytes(id), None);
        let ids = tokenizer.encode(name).unwrap();
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{name} in text became a control token");
        assert_eq!(tokenizer.decode(&ids), name);
    }
    assert_eq!(tokenizer.stop_ids(), [3841, 3842]);
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert!(!tokenizer.is_special(0));
    assert_eq!(tokenizer.token_bytes(0), Some(b"!".as_slice()));
    assert_eq!((tokenizer.token_bytes(4096), tokenizer.token_bytes(u32::MAX)), (None, None));
    assert_eq!(tokenizer.special_id("<|reserved_token_3840|>"), None);
    assert_eq!(tokenizer.decode(&[3840, 0, 3842, 9999, 0]), "!!");
}

/// Characters of the classes that the split pattern tells apart, and any others.
fn text() -> impl Strategy<Value = String> {
    let class = prop::sample::select(vec![
        "a", "A", "漢", "1", " ", "\n", "\r", "\u{301}", "'s", "!", "ǅ", "ʰ", "א", "\u{3000}",
    ]);
    let part = prop_oneof![class.prop_map(str::to_owned), any::<char>().prop_map(String::from)];
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn text_survives_the_way_there_and_back(text in text()) {
        let tokenizer = demo_once();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids), &text);
    }

    #[test]
    fn a_stream_says_what_decode_says(ids in prop::collection::vec(0u32..4200, 0..40)) {
        let tokenizer = demo_once();
        let mut stream = tokenizer.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
        text += &stream.finish();
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| tokenizer.token_bytes(id)).flatten().copied().collect();
        prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
        prop_assert_eq!(text, tokenizer.decode(&ids));
    }
}

fn demo_once() -> &'static Tokenizer {
    static DEMO: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    DEMO.get_or_init(demo)
}
