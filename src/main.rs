use rarunet_cuda::data::*;
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::train::*;
use std::path::Path;
struct P;
impl Observer for P {
    fn begin(&self, s: &Summary) {
        println!("{s:?}")
    }
    fn epoch(&self, r: &EpochRecord, b: bool) {
        println!(
            "{} loss {:.4} dice {:.4} {:.1} img/s {:.1}s {}",
            r.epoch,
            r.train_loss,
            r.val_dice.unwrap_or(-1.0),
            r.images_per_s,
            r.seconds,
            b
        )
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let ds = Dataset::open(Path::new(&a[1])).unwrap();
    let w: Vec<usize> = a[3].split(',').map(|x| x.parse().unwrap()).collect();
    let s = Settings {
        widths: w.try_into().unwrap(),
        epochs: a[4].parse().unwrap(),
        size: a[5].parse().unwrap(),
        learning_rate: a[6].parse().unwrap(),
        schedule: Schedule::Cosine,
        validation_fraction: a[7].parse().unwrap(),
        ..Settings::default()
    };
    let set = Run::load_slices(&s, &ds, || {}).unwrap();
    let run = Run::new(&s, &set, Box::new(CpuDevice::<f32>::new().unwrap()), Path::new(&a[2])).unwrap();
    println!("{:?}", run.train(&P).unwrap());
}
