//! Damaged checkpoints: `verify` and `generate` exit 1, name what is wrong, print no token and do not panic.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{copy, oracle};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

fn abruzzi(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_abruzzi")).args(args).env_remove("ABRUZZI_MODEL").output().unwrap()
}

struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Rewrites a safetensors file with its tensors changed.
fn edit(file: &Path, change: impl FnOnce(&mut Vec<Stored>)) {
    let bytes = std::fs::read(file).unwrap();
    let mut tensors: Vec<Stored> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, t)| Stored {
            name: name.to_owned(),
            dtype: t.dtype(),
            shape: t.shape().to_vec(),
            data: t.data().to_vec(),
        })
        .collect();
    change(&mut tensors);
    let views =
        tensors.iter().map(|t| (&t.name, TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    safetensors::serialize_to_file(views, None, file).unwrap();
}

fn tensor<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Both commands refuse the checkpoint and say `expected`; verify lists every one of `all`.
fn refused(dir: &Path, expected: &str, all: &[&str]) {
    let model = dir.to_str().unwrap();
    for args in [vec!["verify", "-m", model], vec!["generate", "-m", model, "-p", "In", "--temp", "0"]] {
        let out = abruzzi(&args);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(1), "{args:?}\n{stdout}{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        let said = format!("{stdout}{stderr}");
        assert!(said.contains(expected), "{args:?} does not say {expected:?}:\n{said}");
        if args[0] == "generate" {
            assert_eq!(stdout, "", "a token was printed");
        } else {
            for part in all {
                assert!(said.contains(part), "verify does not list {part:?}:\n{said}");
            }
        }
    }
}

fn shard(dir: &Path) -> std::path::PathBuf {
    dir.join("model-00001-of-000001.safetensors")
}

/// Takes the index away, so that only the files speak.
fn without_index(dir: &Path) {
    std::fs::remove_file(dir.join("model.safetensors.index.json")).unwrap();
}

#[test]
fn the_seed_projects_fault_missing_shared_experts() {
    let dir = copy(&oracle("v3-groups-fp8"));
    without_index(dir.path());
    edit(&shard(dir.path()), |t| t.retain(|t| !t.name.contains("shared_experts")));
    let names: Vec<String> = ["gate_proj", "up_proj", "down_proj"]
        .iter()
        .flat_map(|p| {
            ["weight", "weight_scale_inv"].map(|s| format!("model.layers.2.mlp.shared_experts.{p}.{s}"))
        })
        .collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    refused(dir.path(), "shared_experts.gate_proj.weight: missing", &all);
}

#[test]
fn one_nan_code_in_an_expert() {
    let dir = copy(&oracle("v3-groups-fp8"));
    let name = "model.layers.2.mlp.experts.7.up_proj.weight";
    edit(&shard(dir.path()), |t| tensor(t, name).data[4321] = 0x7f);
    refused(dir.path(), name, &["1 non-finite value(s), the first at element 4321"]);
}

#[test]
fn nan_scale_and_infinite_norm_are_both_listed() {
    let dir = copy(&oracle("v3-groups-fp8"));
    let scale = "model.layers.2.mlp.experts.3.down_proj.weight_scale_inv";
    let norm = "model.layers.1.input_layernorm.weight";
    edit(&shard(dir.path()), |t| {
        tensor(t, scale).data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        tensor(t, norm).data[10..12].copy_from_slice(&[0x80, 0xff]);
    });
    refused(dir.path(), scale, &[scale, norm, "the first at element 5"]);
}

#[test]
fn nan_router_bias() {
    let dir = copy(&oracle("k2-bf16"));
    let name = "model.layers.1.mlp.gate.e_score_correction_bias";
    edit(&shard(dir.path()), |t| tensor(t, name).data[8..12].copy_from_slice(&f32::NAN.to_le_bytes()));
    refused(dir.path(), name, &["the first at element 2"]);
}

#[test]
fn int4_scale_and_recorded_shape() {
    let dir = copy(&oracle("k2-int4"));
    let (scale, shape) = (
        "model.layers.1.mlp.experts.0.gate_proj.weight_scale",
        "model.layers.2.mlp.experts.15.down_proj.weight_shape",
    );
    edit(&shard(dir.path()), |t| {
        tensor(t, scale).data[..2].copy_from_slice(&[0xc0, 0x7f]);
        tensor(t, shape).data[..4].copy_from_slice(&9i32.to_le_bytes());
    });
    refused(dir.path(), scale, &[shape, "records the shape [9, 128], expected [256, 128]"]);
}

#[test]
fn truncated_file() {
    let dir = copy(&oracle("k2-fp8"));
    let file = dir.path().join("model-00002-of-000002.safetensors");
    let len = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len - 1000).unwrap();
    refused(dir.path(), "model-00002-of-000002.safetensors", &["truncated"]);
}

#[test]
fn index_that_points_elsewhere() {
    for (to, expected) in [
        ("../x", "not a plain file name"),
        ("/etc/passwd", "not a plain file name"),
        ("gone.safetensors", "is missing"),
    ] {
        let dir = copy(&oracle("k2-bf16"));
        let index = dir.path().join("model.safetensors.index.json");
        let text = std::fs::read_to_string(&index).unwrap();
        std::fs::write(&index, text.replacen("model-00001-of-000001.safetensors", to, 1)).unwrap();
        refused(dir.path(), to, &[expected]);
    }
}

#[test]
fn links_may_not_leave_the_folder_except_into_the_hub_cache() {
    let outside = copy(&oracle("k2-bf16"));
    let dir = copy(&oracle("k2-bf16"));
    std::fs::remove_file(shard(dir.path())).unwrap();
    std::os::unix::fs::symlink(shard(outside.path()), shard(dir.path())).unwrap();
    refused(dir.path(), "model-00001-of-000001.safetensors", &["leads out of the checkpoint's folder"]);

    let hub = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (hub.path().join("blobs"), hub.path().join("snapshots/abc"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    for item in std::fs::read_dir(outside.path()).unwrap() {
        let name = item.unwrap().file_name();
        std::fs::copy(outside.path().join(&name), blobs.join(&name)).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    let out = abruzzi(&["verify", "-m", snapshot.to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn wrong_shape_wrong_type_and_an_unexplained_tensor_are_all_listed() {
    let dir = copy(&oracle("v3-groups-fp8"));
    without_index(dir.path());
    edit(&shard(dir.path()), |t| {
        let norm = tensor(t, "model.norm.weight");
        norm.shape = vec![128];
        norm.data.truncate(256);
        tensor(t, "model.layers.0.mlp.up_proj.weight").dtype = Dtype::I8;
        t.push(Stored {
            name: "model.layers.0.mystery".into(),
            dtype: Dtype::F32,
            shape: vec![1],
            data: vec![0; 4],
        });
    });
    refused(
        dir.path(),
        "model.norm.weight: has shape [128], expected [256]",
        &[
            "model.layers.0.mlp.up_proj.weight: has type I8, expected F8_E4M3",
            "model.layers.0.mystery: unexpected",
        ],
    );
}

#[test]
fn index_and_shards_must_agree() {
    let dir = copy(&oracle("k2-fp8"));
    let index = dir.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let moved = text.replacen(
        "\"lm_head.weight\": \"model-00001-of-000002.safetensors\"",
        "\"lm_head.weight\": \"model-00002-of-000002.safetensors\"",
        1,
    );
    assert_ne!(text, moved);
    std::fs::write(&index, moved).unwrap();
    refused(dir.path(), "lm_head.weight", &["the index places it in"]);
}

#[test]
fn the_same_tensor_in_two_files() {
    let dir = copy(&oracle("k2-bf16"));
    without_index(dir.path());
    let bytes = vec![0u8; 8];
    let view = TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
    safetensors::serialize_to_file([("model.norm.weight", view)], None, &dir.path().join("z.safetensors"))
        .unwrap();
    refused(dir.path(), "model.norm.weight: stands twice", &[]);
}

#[test]
fn files_that_are_something_else() {
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty", b"", "empty"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git-LFS pointer"),
        ("html", b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML page"),
        ("short", b"abc", "too few"),
    ];
    for (_, content, expected) in cases {
        let dir = copy(&oracle("k2-bf16"));
        std::fs::write(shard(dir.path()), content).unwrap();
        refused(dir.path(), "model-00001-of-000001.safetensors", &[expected]);
    }
    let dir = copy(&oracle("k2-bf16"));
    std::fs::write(dir.path().join("config.json"), "<html>").unwrap();
    refused(dir.path(), "an HTML page", &[]);
}

#[test]
fn a_fifo_is_refused_not_waited_for() {
    let dir = copy(&oracle("k2-bf16"));
    std::fs::remove_file(shard(dir.path())).unwrap();
    let made = Command::new("mkfifo").arg(shard(dir.path())).status().unwrap();
    assert!(made.success());
    refused(dir.path(), "not a regular file", &[]);
}

#[test]
fn no_such_folder() {
    refused(Path::new("/nonexistent/model"), "/nonexistent/model: cannot open the checkpoint", &[]);
}
