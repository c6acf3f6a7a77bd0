//! `abruzzi plan`: where every byte would go, from a configuration and the hardware's numbers.

use std::io::Write;

use abruzzi::checkpoint::memory;
use abruzzi::experts::plan::{Ask, Hardware, Plan};
use abruzzi::{DeviceChoice, Error, ModelConfig};

use crate::args::PlanArgs;
use crate::ui;

pub fn run(args: PlanArgs) -> anyhow::Result<()> {
    let config = ModelConfig::from_file(&ui::model_path(args.model.as_deref())?)?;
    let vram = match args.vram {
        Some(bytes) => bytes,
        None => free_on_gpu()?,
    };
    let host = args.host.unwrap_or_else(|| memory::detect_host().available);
    let mut hardware = Hardware::new(vram, host);
    hardware.nvme = args.nvme;
    (hardware.link, hardware.dram, hardware.hbm) = (args.pcie, args.dram, args.hbm);
    let mut ask = Ask::default();
    (ask.context, ask.chunk) = (args.ctx_size, args.chunk);
    let plan = Plan::new(&config, &hardware, &ask)?;

    let mut out = std::io::stdout();
    if args.output.json {
        let mut value = serde_json::to_value(&plan)?;
        value["architecture"] = config.architecture.to_string().into();
        value["modelled"] = vec!["expected"].into();
        writeln!(out, "{value}")?;
        return Ok(());
    }
    let moe = &config.moe;
    writeln!(
        out,
        "{}: {} layers ({} dense), {} of {} experts a token",
        config.architecture, config.num_layers, config.first_k_dense, moe.top_k, moe.num_experts
    )?;
    write!(out, "{plan}")?;
    Ok(())
}

/// What the first GPU has free.
fn free_on_gpu() -> anyhow::Result<u64> {
    let problem = "is not given and no GPU is here to ask; say for example --vram 80GiB".to_owned();
    Ok(ui::free_on_gpu(DeviceChoice::Auto)?.ok_or(Error::Argument { name: "vram", problem })?)
}
