//! Which tensors a new model consists of, and from what each is made.

use std::borrow::Cow;

use super::heal::LayerHealing;
use super::recipe::Recipe;
use super::select::Group;
use crate::checkpoint::tensors::MatrixTensors;
use crate::checkpoint::weights::{GatedMlp, MatrixSpec, Mlp, Storage, VectorSpec, Weights, expert_spec};
use crate::checkpoint::write::{NewTensor, Unit};
use crate::checkpoint::{Checkpoint, Dtype, Located, Source};
use crate::config::ModelConfig;
use crate::quant::{Format, MatrixLayout};

/// All tensors of the new model, in units, with what each unit takes to be made.
pub(super) struct Plan<'a> {
    pub units: Vec<Unit>,
    /// By unit.
    pub jobs: Vec<Vec<Job<'a>>>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// All tensors.
    pub tensors: usize,
}

/// Making one matrix or vector, or the three matrices of a merged expert.
pub(super) struct Job<'a> {
    /// Its first tensor's place in the unit.
    pub first: usize,
    pub work: Work<'a>,
}

/// What there is to do.
pub(super) enum Work<'a> {
    /// One matrix becomes one; a vector counts as a matrix of one row.
    Convert(Convert<'a>),
    /// Rows of a plain matrix are gathered; a vector counts as a matrix of one column.
    Gather { source: Cow<'a, Source>, rows: Vec<usize>, layout: MatrixLayout },
    /// Given values are stored as F32.
    Store(&'a [f32]),
    /// Experts become one.
    Merge { members: Vec<(&'a GatedMlp<Source>, f32)>, layouts: GatedMlp<MatrixLayout>, scale_by: f32 },
}

/// One matrix from another.
pub(super) struct Convert<'a> {
    pub source: Cow<'a, Source>,
    pub layout: MatrixLayout,
    /// All values are multiplied with this, 1 for most.
    pub scale_by: f32,
}

impl<'a> Plan<'a> {
    /// Everything `config`, the new configuration, implies: layer by layer, then the routed experts.
    pub(super) fn of(recipe: &'a Recipe, source: &'a Checkpoint, config: &ModelConfig) -> Plan<'a> {
        let mut planner =
            Planner { recipe, plan: Plan { units: Vec::new(), jobs: Vec::new(), bytes: 0, tensors: 0 } };
        let (specs, trunk) = (Weights::describe(config), source.trunk());
        planner.matrix(&specs.embedding, &trunk.embedding);
        let layers = recipe.selection.layers();
        for (new, spec) in specs.layers.iter().enumerate() {
            let from = &trunk.layers[layers[new]];
            let router = match &spec.mlp {
                Mlp::Dense(_) => None,
                Mlp::Experts { router, bias, .. } => Some((router, bias)),
            };
            for (spec, source) in spec.matrices().into_iter().zip(from.matrices()) {
                match router {
                    Some((router, _)) if router == spec => planner.router(spec, source, new),
                    _ => planner.matrix(spec, source),
                }
            }
            planner.open();
            for (spec, source) in spec.vectors().into_iter().zip(from.vectors()) {
                match router {
                    Some((_, bias)) if bias == spec => planner.bias(spec, source, new),
                    _ => planner.vector(spec, source),
                }
            }
        }
        planner.open();
        planner.vector(&specs.norm, &trunk.norm);
        if let Some((spec, source)) = specs.head.as_ref().zip(trunk.head.as_ref()) {
            planner.matrix(spec, source);
        }
        for (new, &layer) in layers.iter().enumerate() {
            for (e, group) in recipe.selection.experts(new).iter().enumerate() {
                planner.expert(&expert_spec(config, new, e), source.experts(layer), group, new, e);
            }
        }
        planner.plan
    }
}

struct Planner<'a> {
    recipe: &'a Recipe,
    plan: Plan<'a>,
}

impl<'a> Planner<'a> {
    /// Begins a unit.
    fn open(&mut self) {
        self.plan.units.push(Unit { tensors: Vec::new() });
        self.plan.jobs.push(Vec::new());
    }

    /// Adds tensors and what makes them to the last unit.
    fn add(&mut self, tensors: Vec<NewTensor>, work: Work<'a>) {
        self.plan.bytes += tensors.iter().map(NewTensor::bytes).sum::<u64>();
        self.plan.tensors += tensors.len();
        if let (Some(unit), Some(jobs)) = (self.plan.units.last_mut(), self.plan.jobs.last_mut()) {
            jobs.push(Job { first: unit.tensors.len(), work });
            unit.tensors.extend(tensors);
        }
    }

    fn matrix(&mut self, spec: &MatrixSpec, source: &'a Source) {
        self.open();
        let layout = spec.layout(self.recipe.target.plain_matrix(source.layout.format, false));
        let work = Work::Convert(Convert { source: Cow::Borrowed(source), layout, scale_by: 1.0 });
        self.add(tensors_of(spec, layout.format), work);
    }

    fn router(&mut self, spec: &MatrixSpec, source: &'a Source, new: usize) {
        self.open();
        let layout = spec.layout(self.recipe.target.plain_matrix(source.layout.format, false));
        let work = Work::Gather { source: Cow::Borrowed(source), rows: self.heads(new), layout };
        self.add(tensors_of(spec, layout.format), work);
    }

    fn vector(&mut self, spec: &VectorSpec, source: &'a Located) {
        let from = as_matrix(source, 1, spec.len);
        let format = self.recipe.target.plain_format(false).unwrap_or(from.layout.format);
        let layout = MatrixLayout { format, ..from.layout };
        let work = Work::Convert(Convert { source: Cow::Owned(from), layout, scale_by: 1.0 });
        self.add(vec![vector_of(spec, format)], work);
    }

    /// The router's bias keeps its type: routing turns on small differences of it.
    fn bias(&mut self, spec: &VectorSpec, source: &'a Located, new: usize) {
        if let Some(healing) = self.healing(new) {
            return self.add(vec![vector_of(spec, Format::F32)], Work::Store(&healing.router_bias));
        }
        let rows = self.heads(new);
        let elements = source.entry.shape.iter().product::<u64>() as usize;
        let source = as_matrix(source, elements, 1);
        let layout = MatrixLayout { rows: rows.len(), ..source.layout };
        let work = Work::Gather { source: Cow::Owned(source), rows, layout };
        self.add(vec![vector_of(spec, layout.format)], work);
    }

    fn expert(
        &mut self,
        spec: &GatedMlp<MatrixSpec>,
        source: &'a [GatedMlp<Source>],
        group: &Group,
        new: usize,
        e: usize,
    ) {
        self.open();
        let scale_by = self.healing(new).map_or(1.0, |healing| healing.output_scale[e]);
        let of = |spec: &MatrixSpec, source: &Source| {
            let layout = spec.layout(self.recipe.target.plain_matrix(source.layout.format, true));
            (tensors_of(spec, layout.format), layout)
        };
        let GatedMlp { gate, up, down } = &source[group.head()];
        let [gate, up, down] = [(&spec.gate, gate, 1.0), (&spec.up, up, 1.0), (&spec.down, down, scale_by)]
            .map(|(spec, source, scale_by)| {
                let (tensors, layout) = of(spec, source);
                (tensors, Convert { source: Cow::Borrowed(source), layout, scale_by })
            });
        if let [_] = group.members() {
            [gate, up, down]
                .into_iter()
                .for_each(|(tensors, convert)| self.add(tensors, Work::Convert(convert)));
            return;
        }
        let members = group.members().iter().map(|&(e, weight)| (&source[e], weight)).collect();
        let layouts = GatedMlp { gate: gate.1.layout, up: up.1.layout, down: down.1.layout };
        self.add([gate.0, up.0, down.0].concat(), Work::Merge { members, layouts, scale_by });
    }

    fn healing(&self, new: usize) -> Option<&'a LayerHealing> {
        self.recipe.healing.as_ref()?.layer(new)
    }

    /// The source experts whose rows the new router has.
    fn heads(&self, new: usize) -> Vec<usize> {
        self.recipe.selection.experts(new).iter().map(Group::head).collect()
    }
}

/// A plain vector as the matrix it also is.
fn as_matrix(vector: &Located, rows: usize, cols: usize) -> Source {
    let format = match vector.entry.dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        _ => Format::Bf16,
    };
    Source { layout: MatrixLayout { format, rows, cols }, weight: vector.clone(), scale: None, shape: None }
}

fn vector_of(spec: &VectorSpec, format: Format) -> NewTensor {
    NewTensor { name: spec.name.clone(), shape: vec![spec.len as u64], dtype: plain_dtype(format) }
}

/// The tensors of a matrix, weight, scale, shape; `plain` is the type of one that is not quantised.
fn tensors_of(spec: &MatrixSpec, plain: Format) -> Vec<NewTensor> {
    let MatrixTensors { weight, scale, shape } = spec.tensors();
    let dtype = match spec.storage {
        Storage::Plain => plain_dtype(plain),
        Storage::Fp8Block | Storage::Int4Group32 => weight.dtypes[0],
    };
    let weight = NewTensor { name: weight.name, shape: weight.shape, dtype };
    let others = [scale, shape].into_iter().flatten();
    let others = others.map(|t| NewTensor { name: t.name, shape: t.shape, dtype: t.dtypes[0] });
    std::iter::once(weight).chain(others).collect()
}

fn plain_dtype(format: Format) -> Dtype {
    match format {
        Format::F32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        _ => Dtype::Bf16,
    }
}
