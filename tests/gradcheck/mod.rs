//! Every op against central differences, and that the check finds a gradient that is wrong.

use rarunet_cuda::Result;
use rarunet_cuda::device::cpu::{Call, Cpu, CpuDevice, InstructionSet, OnCpu, Real};
use rarunet_cuda::device::cuda::{Launcher, OnCuda};
use rarunet_cuda::device::{Device, Precision};
use rarunet_cuda::gradcheck::{Check, TOLERANCE_F64, run, run_cases};
use rarunet_cuda::graph::{Graph, ValueId};
use rarunet_cuda::ops::case::Case;
use rarunet_cuda::ops::{self, Gradient, Op};
use rarunet_cuda::tensor::Shape;

fn device() -> Result<Box<dyn Device<f64>>> {
    Ok(Box::new(CpuDevice::<f64>::new()?))
}

#[test]
fn every_op_agrees_with_central_differences() {
    assert_eq!(TOLERANCE_F64, 1e-6);
    let checks = run::<f64>(device, None, TOLERANCE_F64, |_| {}).unwrap();
    let mut names: Vec<&str> = ops::cases().iter().map(|case| case.op).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(checks.iter().map(|check| check.op.as_str()).collect::<Vec<_>>(), names);
    assert_eq!(checks.iter().map(|check| check.cases).sum::<usize>(), ops::cases().len());
    for check in checks {
        assert!(check.passed && check.max_relative_error <= 1e-6, "{check:?}");
    }
}

#[test]
fn convolution_agrees_with_any_instruction_set() {
    for set in [InstructionSet::Portable, InstructionSet::Avx2] {
        if set < InstructionSet::best() {
            let device = || -> Result<Box<dyn Device<f64>>> { Ok(Box::new(CpuDevice::<f64>::with(None, set)?)) };
            let checks = run::<f64>(device, Some("convolution"), TOLERANCE_F64, |_| {}).unwrap();
            assert!(checks.iter().all(|check| check.passed && check.cases > 30), "{set:?}: {checks:?}");
        }
    }
}

/// As the kernels are checked in 16 bits.
#[test]
fn every_op_agrees_where_the_cpu_rounds() {
    for (precision, tolerance) in [(Precision::Bf16, 1e-2), (Precision::Fp16, 2e-3)] {
        let device = || -> Result<Box<dyn Device<f32>>> { Ok(Box::new(CpuDevice::new()?.rounding(precision))) };
        let checks = run(device, None, tolerance, |_| {}).unwrap();
        assert!(checks.iter().all(|check| check.passed), "{precision}: {checks:#?}");
        // Rounded to 8 bits, or to 11.
        let convolution = checks.iter().find(|check| check.op == "convolution").unwrap();
        assert!(convolution.max_relative_error > 0.1 * tolerance, "{precision}: {convolution:?}");
    }
}

/// `out = x^2`, whose gradient is `factor x dout`: right if the factor is 2.
#[derive(Debug)]
struct Square {
    factor: f64,
}

impl Op for Square {
    fn name(&self) -> &'static str {
        "square"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, context: &Gradient) -> Result<Vec<Option<ValueId>>> {
        let gradient = SquareGradient { factor: self.factor };
        Ok(vec![Some(graph.apply_one(gradient, &[context.of(0), context.inputs[0]])?)])
    }
}

impl<T: Real> OnCpu<T> for Square {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        call.combine(|[x]| x * x);
    }
}

#[derive(Debug)]
struct SquareGradient {
    factor: f64,
}

impl Op for SquareGradient {
    fn name(&self) -> &'static str {
        "square_gradient"
    }

    fn outputs(&self, inputs: &[&Shape]) -> Result<Vec<Shape>> {
        Ok(vec![inputs[0].clone()])
    }
}

impl<T: Real> OnCpu<T> for SquareGradient {
    fn run(&self, _: &Cpu<T>, mut call: Call<T>) {
        let factor = T::from_f64(self.factor);
        call.combine(|[dout, x]| factor * dout * x);
    }
}

impl OnCuda for Square {
    fn launch(&self, _: &mut Launcher) -> Result<()> {
        unreachable!("the op is only run on the CPU")
    }
}

impl OnCuda for SquareGradient {
    fn launch(&self, _: &mut Launcher) -> Result<()> {
        unreachable!("the op is only run on the CPU")
    }
}

fn check_square(factor: f64) -> Check {
    let shape = Shape::image(2, 3, 5, 3);
    let case = Case::new("square", [shape], move |graph, inputs| graph.apply(Square { factor }, inputs));
    let mut checks = run_cases::<f64>(&[case], device, None, TOLERANCE_F64, |_| {}).unwrap();
    assert_eq!(checks.len(), 1);
    checks.remove(0)
}

#[test]
fn a_wrong_gradient_fails() {
    let right = check_square(2.0);
    assert!(right.passed && right.max_relative_error < 1e-8, "{right:?}");
    // Slightly wrong, wrong, and turned round: the error is relative to the gradient's largest element.
    for (factor, error) in [(2.0 + 4e-6, 2e-6), (3.0, 0.5), (-2.0, 2.0)] {
        let wrong = check_square(factor);
        assert!(!wrong.passed, "{factor}: {wrong:?}");
        assert!((wrong.max_relative_error / error - 1.0).abs() < 1e-2, "{factor}: {wrong:?}");
    }
}

#[test]
fn a_gradient_that_is_no_number_fails() {
    let check = check_square(f64::NAN);
    assert!(!check.passed && check.max_relative_error == f64::INFINITY, "{check:?}");
}

#[test]
fn an_unknown_op_is_an_error() {
    let message = run::<f64>(device, Some("gelu"), TOLERANCE_F64, |_| {}).unwrap_err().to_string();
    assert!(message.contains("gelu") && message.contains("batch_norm"), "{message}");
}
