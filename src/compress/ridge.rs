//! Ridge regression in closed form: what is left of a least-squares problem after its rows were added up.

/// Sums over observations of target t and features z: Σ z zᵀ, Σ z·t and Σ t·t, where the products are inner products of vectors.
#[derive(Debug, Clone)]
pub(super) struct Normal {
    n: usize,
    /// [n, n], symmetric.
    gram: Vec<f64>,
    with_target: Vec<f64>,
    target: f64,
}

impl Normal {
    /// For `n` features, nothing observed.
    pub(super) fn new(n: usize) -> Normal {
        Normal { n, gram: vec![0.0; n * n], with_target: vec![0.0; n], target: 0.0 }
    }

    /// Adds an observation in which only some features are not zero: their numbers and values, and the target.
    pub(super) fn observe(&mut self, features: &[(usize, &[f32])], target: &[f32]) {
        for &(i, a) in features {
            for &(j, b) in features {
                self.gram[i * self.n + j] += dot(a, b);
            }
            self.with_target[i] += dot(a, target);
        }
        self.target += dot(target, target);
    }

    /// Σ ‖t − Σ cᵢ zᵢ‖².
    pub(super) fn error(&self, c: &[f64]) -> f64 {
        let rows = self.gram.chunks_exact(self.n).zip(c);
        let quadratic: f64 =
            rows.map(|(row, ci)| ci * row.iter().zip(c).map(|(g, cj)| g * cj).sum::<f64>()).sum();
        let linear: f64 = self.with_target.iter().zip(c).map(|(b, ci)| b * ci).sum();
        (self.target - 2.0 * linear + quadratic).max(0.0)
    }

    /// The c of least Σ ‖t − Σ cᵢ zᵢ‖² + λ·d·Σ (cᵢ − 1)², d the mean of Σ zᵢ·zᵢ over the features that were observed. `None` if
    /// nothing was, or λ is not positive.
    pub(super) fn ridge_about_one(&self, lambda: f64) -> Option<Vec<f64>> {
        let diagonal: Vec<f64> = (0..self.n).map(|i| self.gram[i * self.n + i]).collect();
        let seen = diagonal.iter().filter(|&&d| d > 0.0).count();
        let penalty = lambda * diagonal.iter().sum::<f64>() / seen.max(1) as f64;
        if !(penalty > 0.0 && penalty.is_finite()) {
            return None;
        }
        let mut matrix = self.gram.clone();
        for i in 0..self.n {
            matrix[i * self.n + i] += penalty;
        }
        let right: Vec<f64> = self.with_target.iter().map(|b| b + penalty).collect();
        solve(matrix, right)
    }
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Solves a symmetric positive definite system by Cholesky's decomposition; `None` if it is not one.
fn solve(mut a: Vec<f64>, mut x: Vec<f64>) -> Option<Vec<f64>> {
    let n = x.len();
    for j in 0..n {
        for k in 0..j {
            for i in j..n {
                a[i * n + j] -= a[i * n + k] * a[j * n + k];
            }
        }
        let pivot = a[j * n + j];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        for i in j..n {
            a[i * n + j] /= pivot.sqrt();
        }
    }
    for i in 0..n {
        let known: f64 = (0..i).map(|k| a[i * n + k] * x[k]).sum();
        x[i] = (x[i] - known) / a[i * n + i];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| a[k * n + i] * x[k]).sum();
        x[i] = (x[i] - known) / a[i * n + i];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::Rng;
    use rand_pcg::Pcg64Mcg;

    fn uniform(rng: &mut Pcg64Mcg) -> f32 {
        rng.next_u32() as f32 / u32::MAX as f32 - 0.5
    }

    #[test]
    fn finds_the_scales_a_target_was_made_with() {
        let mut rng = Pcg64Mcg::new(7);
        let (n, width) = (6, 5);
        let scales: Vec<f32> = (0..n).map(|i| 0.4 + 0.3 * i as f32).collect();
        let mut normal = Normal::new(n);
        for _ in 0..200 {
            let chosen = [rng.next_u32() as usize % 3, 3 + rng.next_u32() as usize % 3];
            let values: Vec<Vec<f32>> =
                chosen.iter().map(|_| (0..width).map(|_| uniform(&mut rng)).collect()).collect();
            let target: Vec<f32> = (0..width)
                .map(|c| chosen.iter().zip(&values).map(|(&e, v)| scales[e] * v[c]).sum())
                .collect();
            let features: Vec<(usize, &[f32])> =
                chosen.iter().zip(&values).map(|(&e, v)| (e, &v[..])).collect();
            normal.observe(&features, &target);
        }
        let c = normal.ridge_about_one(1e-9).unwrap();
        for (c, scale) in c.iter().zip(&scales) {
            assert!((c - f64::from(*scale)).abs() < 1e-5, "{c} for {scale}");
        }
        assert!(normal.error(&c) < 1e-6 * normal.error(&vec![1.0; n]));
        // The more it costs to leave 1, the nearer it stays.
        let stiff = normal.ridge_about_one(1e9).unwrap();
        assert!(stiff.iter().all(|c| (c - 1.0).abs() < 1e-6));
    }

    #[test]
    fn the_error_is_that_of_the_sum() {
        let mut normal = Normal::new(2);
        normal.observe(&[(0, &[1.0, 2.0]), (1, &[0.0, 1.0])], &[3.0, 5.0]);
        // t − 2·z₀ − 0.5·z₁ = (1, 0.5)
        assert!((normal.error(&[2.0, 0.5]) - 1.25).abs() < 1e-12);
    }

    #[test]
    fn an_expert_nobody_chose_stays_as_it_is_and_nothing_seen_has_no_answer() {
        let mut normal = Normal::new(2);
        normal.observe(&[(0, &[1.0])], &[2.0]);
        let c = normal.ridge_about_one(1e-6).unwrap();
        assert!((c[0] - 2.0).abs() < 1e-3 && (c[1] - 1.0).abs() < 1e-9, "{c:?}");
        assert!(Normal::new(3).ridge_about_one(1.0).is_none());
    }
}
