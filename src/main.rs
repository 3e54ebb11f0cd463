use rarunet_cuda::device::cpu::CpuDevice;
fn main() {
    let checks = rarunet_cuda::gradcheck::run::<f64>(
        || Ok(Box::new(CpuDevice::<f64>::new()?)),
        std::env::args().nth(1).as_deref(),
        1e-6,
        |c| eprintln!("{}", c.label()),
    )
    .unwrap();
    for c in checks {
        println!("{:30} {:3} {:.2e} {}", c.op, c.cases, c.max_relative_error, c.passed);
    }
}
