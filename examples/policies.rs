//! How good each cache policy is: `cargo run --release --example policies -- [TRACE]` (a synthetic trace of Kimi-K2's shape
//! unless a file is named, as `record_routing` and `--trace` write them). Prints a Markdown table of hit rates.

use abruzzi::experts::policy::{Belady, CachePolicy, Foretold, Policy, StaticHot, evaluate};
use abruzzi::experts::trace::{RoutingTrace, SyntheticTrace};

fn main() -> abruzzi::Result<()> {
    let trace = match std::env::args().nth(1) {
        Some(file) => RoutingTrace::from_json_file(file)?,
        None => RoutingTrace::synthetic(&SyntheticTrace::kimi_k2(4000, 1))?,
    };
    println!("{:?}\n", trace.stats());
    let (all, token) = (trace.all_experts(), trace.working_set());
    let share = |percent: usize| (format!("{percent} %"), all * percent / 100);
    let mut sizes = vec![("half a token".to_owned(), token / 2), ("a token".to_owned(), token)];
    sizes.extend([3, 6, 12, 24, 48].map(share));

    let heads: Vec<_> = sizes.iter().map(|(name, slots)| format!("{name} ({slots})")).collect();
    println!("| policy | {} |\n|---|{}", heads.join(" | "), "---|".repeat(sizes.len()));
    let row = |name: &str, policy: &dyn Fn(usize) -> Box<dyn Policy>| {
        let rates = sizes.iter().map(|&(_, slots)| evaluate(&trace, &mut *policy(slots), slots).rate());
        let cells: Vec<_> = rates.map(|rate| format!("{:.1} %", 100.0 * rate)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    let layers = trace.layers().last().map_or(0, |&l| l as usize + 1);
    for policy in CachePolicy::ALL {
        row(&policy.to_string(), &|slots| policy.build(slots, layers, trace.experts(), trace.top_k()));
    }
    for (told, next) in
        [("the rest of a pass", 0.0), ("3 of 10 next tokens", 0.3), ("8 of 10", 0.8), ("every one", 1.0)]
    {
        row(&format!("reuse, told {told}"), &|_| Box::new(Foretold::new(&trace, next)));
    }
    row("static, hot set of this trace", &|_| Box::new(StaticHot::from_trace(&trace)));
    row("belady, every miss kept", &|_| Box::new(Belady::keeping_all(&trace)));
    row("belady", &|_| Box::new(Belady::new(&trace)));
    Ok(())
}
