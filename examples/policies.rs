//! scratch
use abruzzi::experts::policy::*;
use abruzzi::experts::trace::*;
fn main() -> abruzzi::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let trace = match args.first() {
        Some(f) if f != "k2" => RoutingTrace::from_json_file(f)?,
        _ => RoutingTrace::synthetic(&SyntheticTrace::kimi_k2(2000, 1))?,
    };
    println!("{:?}", trace.stats());
    let all = trace.all_experts();
    let ws = trace.working_set();
    let sizes = [ws / 2, ws, all * 3 / 100, all * 6 / 100, all * 12 / 100, all * 24 / 100, all * 48 / 100];
    println!("{:10} {sizes:?}", "");
    for p in CachePolicy::ALL {
        print!("{p:10}");
        let t = std::time::Instant::now();
        for s in sizes {
            print!(
                " {:6.3}",
                evaluate(&trace, &mut *p.build(s, 61, trace.experts(), trace.top_k()), s).rate()
            );
        }
        println!("  {:?}", t.elapsed());
    }
    print!("{:10}", "static-t");
    for s in sizes {
        print!(" {:6.3}", evaluate(&trace, &mut StaticHot::from_trace(&trace), s).rate());
    }
    println!();
    print!("{:10}", "belady");
    for s in sizes {
        print!(" {:6.3}", evaluate(&trace, &mut Belady::new(&trace), s).rate());
    }
    println!();
    Ok(())
}
