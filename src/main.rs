use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::model::*;
fn main() {
    let mut net = Network::<f32>::new(Model::new("rar-unet", PAPER_WIDTHS).unwrap(), Box::new(CpuDevice::<f32>::new().unwrap())).unwrap();
    net.initialise(1).unwrap();
    let step = net.load(Mode::Train, 4, [128,128]).unwrap();
    println!("{} arena {} MiB, {} GFLOP", net.device().name(), net.plan(&step).arena*4>>20, net.plan(&step).operations/1_000_000_000);
    let n=4*128*128; let img: Vec<f32> = (0..n).map(|i| ((i*7919)%1000) as f32/500.0-1.0).collect(); let t: Vec<f32>=(0..n).map(|i| ((i/64)%10==0) as u8 as f32).collect();
    net.write_batch(&step,&img,&t,&[1.0;4]).unwrap();
    for k in 1..6 { net.write_batch(&step,&img,&t,&[1.0;4]).unwrap(); let t0=std::time::Instant::now(); let l=net.train(&step,1e-4,k).unwrap(); println!("{:.3} s {:.2} img/s {:?}", t0.elapsed().as_secs_f64(), 4.0/t0.elapsed().as_secs_f64(), l.batch); }
}
