//! The names of special registers.

use std::fmt;

use super::ast::Special;

/// Those without a dimension.
const PLAIN: [(&str, Special); 28] = [
    ("%laneid", Special::LaneId),
    ("%warpid", Special::WarpId),
    ("%nwarpid", Special::NwarpId),
    ("%smid", Special::SmId),
    ("%nsmid", Special::NsmId),
    ("%gridid", Special::GridId),
    ("%clock", Special::Clock),
    ("%clock64", Special::Clock64),
    ("%clock_hi", Special::Clock32Hi),
    ("%globaltimer", Special::GlobalTimer),
    ("%lanemask_eq", Special::LanemaskEq),
    ("%lanemask_le", Special::LanemaskLe),
    ("%lanemask_lt", Special::LanemaskLt),
    ("%lanemask_ge", Special::LanemaskGe),
    ("%lanemask_gt", Special::LanemaskGt),
    ("%dynamic_smem_size", Special::DynamicSmemSize),
    ("%total_smem_size", Special::TotalSmemSize),
    ("%cluster_ctarank", Special::ClusterCtarank),
    ("%cluster_nctarank", Special::ClusterNctarank),
    ("%is_explicit_cluster", Special::IsExplicitCluster),
    ("%globaltimer_lo", Special::GlobalTimerLo),
    ("%globaltimer_hi", Special::GlobalTimerHi),
    ("%aggr_smem_size", Special::AggrSmemSize),
    ("%reserved_smem_offset_begin", Special::ReservedSmemBegin),
    ("%reserved_smem_offset_end", Special::ReservedSmemEnd),
    ("%reserved_smem_offset_cap", Special::ReservedSmemCap),
    ("%reserved_smem_offset_0", Special::ReservedSmemOffset(0)),
    ("%reserved_smem_offset_1", Special::ReservedSmemOffset(1)),
];

type Make = fn(u8) -> Special;

/// Those with `.x`, `.y` or `.z`.
const SPATIAL: [(&str, Make); 8] = [
    ("%tid", Special::Tid),
    ("%ntid", Special::Ntid),
    ("%ctaid", Special::Ctaid),
    ("%nctaid", Special::Nctaid),
    ("%clusterid", Special::ClusterId),
    ("%nclusterid", Special::NclusterId),
    ("%cluster_ctaid", Special::ClusterCtaid),
    ("%cluster_nctaid", Special::ClusterNctaid),
];

/// Environment registers that exist.
const ENVREGS: u8 = 32;

/// The special register of that name.
pub(super) fn special(name: &str) -> Option<Special> {
    if let Some((base, dimension)) = name.split_once('.') {
        let dimension = match dimension {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        };
        return SPATIAL.iter().find(|(known, _)| *known == base).map(|(_, make)| make(dimension));
    }
    if let Some(number) = name.strip_prefix("%envreg") {
        return number.parse().ok().filter(|&n| n < ENVREGS).map(Special::Envreg);
    }
    PLAIN.iter().find(|(known, _)| *known == name).map(|&(_, special)| special)
}

impl fmt::Display for Special {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Special::Envreg(n) => write!(f, "%envreg{n}"),
            special => {
                if let Some((name, _)) = PLAIN.iter().find(|(_, known)| *known == special) {
                    return f.write_str(name);
                }
                for (name, make) in SPATIAL {
                    if let Some(n) = (0..3u8).find(|&n| make(n) == special) {
                        return write!(f, "{name}.{}", ["x", "y", "z"][usize::from(n)]);
                    }
                }
                write!(f, "{special:?}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_there_and_back() {
        for name in [
            "%tid.x",
            "%nctaid.z",
            "%cluster_ctaid.y",
            "%laneid",
            "%clock64",
            "%envreg31",
            "%cluster_ctarank",
        ] {
            assert_eq!(special(name).map(|s| s.to_string()).as_deref(), Some(name));
        }
        for name in ["%tid", "%tid.w", "%envreg32", "%laneid.x", "%pm0"] {
            assert_eq!(special(name), None, "{name}");
        }
    }
}
