//! What is fuzzed: one function a target, from any bytes to assertions that must hold for them.
//!
//! The fuzz targets and `tests/fuzz_seeds.rs` both include this file, so that a committed finding is a test.

use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use abruzzi::checkpoint::{Inventory, parse_header, parse_index};
use abruzzi::{ChatTemplate, Error, Message, ModelConfig, Tokenizer};

/// A stand-in for a file, which counts what is read of it.
struct Counted<'a> {
    left: &'a [u8],
    read: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.left.read(buffer)?;
        self.read += n as u64;
        Ok(n)
    }
}

/// Eight bytes that are added to the file's length (as of a sparse file), then the file's beginning.
///
/// Entries lie inside the file and behind the header, overlap nowhere, and have the size that shape and type say. No
/// byte behind the header is read, and nothing kept is larger than what was read.
pub fn safetensors_header(data: &[u8]) {
    let Some((more, file)) = data.split_first_chunk::<8>() else { return };
    // Below 2^62, so that the sums here cannot overflow; the engine's own have no such help from real files.
    let file_len = file.len() as u64 + (u64::from_le_bytes(*more) >> 2);
    let mut source = Counted { left: file, read: 0 };
    let result = parse_header(&mut source, file_len);
    let declared = file.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len));
    let Ok(header) = result else {
        assert!(source.read <= declared.saturating_add(72));
        return;
    };
    assert!(source.read <= 8 + declared);
    let mut end = 8 + declared;
    let mut kept = 0;
    for entry in &header.entries {
        assert!(entry.offset >= end, "{} overlaps what stands before it", entry.name);
        end = entry.offset + entry.len;
        let elements: u128 = entry.shape.iter().map(|&n| u128::from(n)).product();
        assert_eq!(elements * u128::from(entry.dtype.bytes()), u128::from(entry.len), "{}", entry.name);
        kept += entry.name.len();
    }
    assert!(end <= file_len, "a tensor ends behind the file");
    assert!(kept as u64 <= declared);
    let mut names: Vec<&str> = header.entries.iter().map(|e| &*e.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name stands twice");
    let covered: u64 = header.entries.iter().map(|e| e.len).sum();
    if header.faults.is_empty() {
        assert_eq!(covered, file_len - 8 - declared, "bytes that belong to no tensor were not reported");
    }
}

/// An index file. Every shard is a plain file name, is used, and is named once; every tensor has one.
pub fn shard_index(data: &[u8]) {
    let Ok(index) = parse_index(data) else { return };
    let mut used = vec![false; index.shards.len()];
    for (name, &shard) in &index.map {
        assert!(name.len() <= 512);
        used[shard as usize] = true;
    }
    assert!(used.into_iter().all(|used| used), "a shard without tensors");
    for (at, shard) in index.shards.iter().enumerate() {
        assert!(!index.shards[..at].contains(shard), "{shard:?} stands twice");
        let folder = Path::new("/checkpoint");
        assert_eq!(folder.join(shard).parent(), Some(folder), "{shard:?} is not in the folder");
        assert_eq!(folder.join(shard).file_name().and_then(|n| n.to_str()), Some(shard.as_str()));
        assert!(shard.len() <= 512 && !shard.contains(['/', '\\', '\0']) && shard != "..");
    }
}

/// A `config.json`. What is accepted can be counted without overflow (the targets run with overflow checks), and its
/// numbers are such as the forward pass divides and multiplies by.
pub fn model_config(data: &[u8]) {
    let config = match ModelConfig::from_json(data, Path::new("config.json")) {
        Ok(config) => config,
        Err(Error::Config { field, problem, .. }) => {
            assert!(!field.is_empty() && !problem.is_empty());
            assert!(problem.len() < 4096, "{} bytes of error message", problem.len());
            return;
        }
        Err(e) => panic!("another kind of error: {e:?}"),
    };
    let (attention, moe) = (&config.attention, &config.moe);
    assert_eq!(config.rope.inv_freq.len() * 2, attention.rope_head_dim);
    assert!(config.rope.inv_freq.iter().all(|f| f.is_finite() && *f > 0.0), "{:?}", config.rope);
    for positive in [
        config.rope.amplitude,
        attention.softmax_scale,
        config.rms_norm_eps,
        config.latent_norm_eps,
        moe.routed_scaling_factor,
    ] {
        assert!(positive.is_finite() && positive > 0.0, "{positive} in {config:?}");
    }
    assert!(config.first_k_dense <= config.num_layers);
    assert!(moe.num_experts.is_multiple_of(moe.n_group) && moe.topk_group <= moe.n_group);
    assert!(moe.top_k <= moe.num_experts / moe.n_group * moe.topk_group);
    let ids = config.eos_token_ids.iter().chain(&config.bos_token_id);
    assert!(ids.into_iter().all(|&id| (id as usize) < config.vocab_size));

    let inventory = Inventory::of(&config);
    let sum = |amounts: Vec<u64>| amounts.into_iter().map(u128::from).sum::<u128>();
    for by in [&inventory.parts, &inventory.formats] {
        assert_eq!(sum(by.values().map(|a| a.parameters).collect()), u128::from(inventory.total.parameters));
        assert_eq!(sum(by.values().map(|a| a.bytes).collect()), u128::from(inventory.total.bytes));
    }
    assert!(inventory.total.parameters >= (config.vocab_size * config.hidden_size) as u64);
    let moe_layers = (config.num_layers - config.first_k_dense) as u64;
    assert_eq!(inventory.routed_bytes_per_token, moe_layers * moe.top_k as u64 * inventory.expert_bytes);
    assert_eq!(inventory.bytes_per_token, inventory.active.bytes);
}

/// A byte that picks the vocabulary, a vocabulary file, and after its last 0xFF the text to encode.
///
/// What is loaded encodes a text to ordinary ids below the vocabulary's size; decoding one by one says the same as
/// decoding at once. `tiktoken.model` gives every text back; so does the one `tokenizer.json` that is known to change
/// no text (others may: normalizers are theirs to choose).
pub fn tokenizer(data: &[u8]) {
    const VOCAB: usize = 1024;
    let Some((&choice, rest)) = data.split_first() else { return };
    let (vocabulary, text) = match rest.iter().rposition(|&b| b == 0xFF) {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, &b""[..]),
    };
    let text = String::from_utf8_lossy(text);
    let file = Path::new("vocabulary");
    let tiktoken = |bytes: &[u8]| Tokenizer::from_tiktoken_bytes(bytes, file, VOCAB);
    let json = |bytes: &[u8]| Tokenizer::from_json_bytes(bytes, file, VOCAB);
    // A file that the fuzzer has to write whole, lines behind 256 good ones, or only text for a vocabulary that is made
    // once: making one takes as long as a thousand texts.
    static MADE: OnceLock<[Tokenizer; 2]> = OnceLock::new();
    let [made_tiktoken, made_json] = MADE.get_or_init(|| {
        let lines = [single_bytes(), include_bytes!("seeds/merges.tiktoken")].concat();
        let (lines, whole) = (tiktoken(&lines), json(include_bytes!("seeds/tokenizer.json")));
        [lines.expect("a sound vocabulary"), whole.expect("a sound vocabulary")]
    });
    let loaded = match choice % 8 {
        0 => tiktoken(vocabulary),
        1 => json(vocabulary),
        2 => tiktoken(&[single_bytes(), vocabulary].concat()),
        3..=5 => return encode(made_tiktoken, &text, true),
        _ => return encode(made_json, &text, true),
    };
    match loaded {
        Ok(tokenizer) => encode(&tokenizer, &text, choice % 8 != 1),
        Err(Error::Tokenizer { .. }) => {}
        Err(e) => panic!("another kind of error: {e:?}"),
    }
}

/// There and back; `exact` where no step of the vocabulary's may refuse or change a text.
fn encode(tokenizer: &Tokenizer, text: &str, exact: bool) {
    let vocab_size = tokenizer.vocab_size();
    let ids = match tokenizer.encode(text) {
        Ok(ids) => ids,
        Err(Error::Tokenizer { .. }) if !exact => return,
        Err(e) => panic!("a text that cannot be encoded: {e:?}"),
    };
    assert!(ids.iter().all(|&id| (id as usize) < vocab_size));
    assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "text became a control token: {ids:?}");
    let decoded = tokenizer.decode(&ids);
    if exact {
        assert_eq!(decoded, text, "does not survive the way back");
    }
    let stream_of = |ids: &[u32]| {
        let mut stream = tokenizer.stream();
        let mut streamed: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
        streamed += &stream.finish();
        streamed
    };
    assert_eq!(stream_of(&ids), decoded);
    // Any ids at all may come from a model.
    let any: Vec<u32> = text.chars().map(|c| c as u32 % (vocab_size as u32 + 8)).collect();
    assert_eq!(stream_of(&any), tokenizer.decode(&any));
}

/// The lines of a `tiktoken.model` of the 256 single bytes.
fn single_bytes() -> &'static [u8] {
    static LINES: OnceLock<Vec<u8>> = OnceLock::new();
    LINES.get_or_init(|| (0..=255u8).flat_map(|b| format!("{} {b}\n", base64(b)).into_bytes()).collect())
}

/// One byte in base64.
fn base64(byte: u8) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    format!("{}{}==", digit(byte >> 2), digit((byte & 3) << 4))
}

/// A template, and behind each 0xFF a message: its first line is the role.
///
/// Rendering ends, in ids or in a typed error. Control ids come from the template alone: Kimi's gives as many whatever
/// the messages say, and templates that name none give none, cut and change the messages as they may.
pub fn chat_template(data: &[u8]) {
    const NAMELESS: [&str; 3] = [
        "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | trim }}{{ m.role | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content.replace('x', '') }}{{ m.content[1:] | lower }}{% endfor %}",
    ];
    let tokenizer = small_tokenizer();
    let file = Path::new("t.jinja");
    let mut parts = data.split(|&b| b == 0xFF).map(String::from_utf8_lossy);
    let source = parts.next().unwrap_or_default();
    let messages: Vec<Message> = parts
        .map(|part| {
            let (role, content) = part.split_once('\n').unwrap_or(("user", &part));
            Message::new(role, content)
        })
        .collect();
    static FIXED: OnceLock<[ChatTemplate; 4]> = OnceLock::new();
    let [kimi, nameless @ ..] = FIXED.get_or_init(|| {
        let sources = [include_str!("../src/tokenizer/kimi.jinja"), NAMELESS[0], NAMELESS[1], NAMELESS[2]];
        sources.map(|source| ChatTemplate::from_source(source, file).expect("a template of this file"))
    });
    let controls = |template: &ChatTemplate, messages: &[Message]| {
        let ids = template.render(tokenizer, messages, true).expect("any messages");
        ids.iter().filter(|&&id| tokenizer.is_special(id)).count()
    };
    let harmless: Vec<Message> = messages.iter().map(|m| Message::new(plain(&m.role), "x")).collect();
    assert_eq!(controls(kimi, &messages), controls(kimi, &harmless), "a message became a control token");
    // One of them a run: the fuzzer varies lengths anyway.
    let template = &nameless[data.len() % nameless.len()];
    assert_eq!(controls(template, &messages), 0, "{template:?}: a message became a control token");
    let Ok(template) = ChatTemplate::from_source(&source, file) else { return };
    match template.render(tokenizer, &messages, data.len().is_multiple_of(2)) {
        Ok(ids) => assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size())),
        Err(Error::Tokenizer { problem, .. }) => assert!(!problem.is_empty()),
        Err(e) => panic!("another kind of error: {e:?}"),
    }
}

/// Bytes and a handful of control tokens: with the 256 of a `tiktoken.model` looking for names is nearly all the time.
fn small_tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let bytes = include_bytes!("seeds/tokenizer.json");
        Tokenizer::from_json_bytes(bytes, Path::new("tokenizer.json"), 300).expect("a sound vocabulary")
    })
}

/// A role that Kimi's template treats as `role`, and that is no control token's name.
fn plain(role: &str) -> &str {
    if matches!(role, "system" | "user" | "assistant") { role } else { "tool" }
}
