"""Every published size: what its configuration says, and the number of parameters that its paper or repository counts."""

from __future__ import annotations

import math

# Of every published size, read from whole files before sizes were overlays: its configuration, image size, parameters of the
# network, images trained on, batch, micro-batches.
PUBLISHED = [
    ("emigm_b_256", "emigm_256", 256, 207_924_000, 1_024_933_600, 2048, 8),
    ("emigm_xs_256", "emigm_256", 256, 69_018_848, 1_024_933_600, 2048, 8),
    ("emigm_s_256", "emigm_256", 256, 96_640_544, 1_024_933_600, 2048, 8),
    ("emigm_l_256", "emigm_256", 256, 478_325_280, 1_024_933_600, 2048, 8),
    ("emigm_h_256", "emigm_256", 256, 942_401_824, 1_024_933_600, 2048, 8),
    ("emigm_xs_512", "emigm_256", 512, 104_506_624, 1_024_933_600, 2048, 8),
    ("emigm_s_512", "emigm_256", 512, 132_145_728, 1_024_933_600, 2048, 8),
    ("emigm_b_512", "emigm_256", 512, 244_150_592, 1_024_933_600, 2048, 8),
    ("emigm_l_512", "emigm_256", 512, 478_403_136, 1_024_933_600, 2048, 8),
    ("mar_b_256", "mar_256", 256, 207_924_768, 1_024_933_600, 2048, 8),
    ("mar_l_256", "mar_256", 256, 478_326_304, 1_024_933_600, 2048, 8),
    ("mar_h_256", "mar_256", 256, 942_403_104, 1_024_933_600, 2048, 8),
    ("mar_l_512", "mar_256", 512, 480_685_600, 512_466_800, 2048, 8),
    ("var_d16_256", "var_256", 256, 310_283_520, 256_233_400, 768, 2),
    ("var_d20_256", "var_256", 256, 600_917_136, 320_291_750, 768, 2),
    ("var_d24_256", "var_256", 256, 1_033_399_360, 448_408_450, 768, 4),
    ("var_d30_256", "var_256", 256, 2_010_020_356, 448_408_450, 1024, 8),
    ("var_d36_512", "var_256", 512, 2_353_893_904, 448_408_450, 768, 16),
    ("llamagen_b_256", "llamagen_256", 256, 110_888_448, 384_350_100, 256, 1),
    ("llamagen_l_256", "llamagen_256", 256, 342_910_976, 384_350_100, 256, 1),
    ("llamagen_b_384", "llamagen_256", 384, 110_888_448, 384_350_100, 256, 1),
    ("llamagen_l_384", "llamagen_256", 384, 342_910_976, 384_350_100, 256, 2),
    ("llamagen_xl_384", "llamagen_256", 384, 774_699_520, 384_350_100, 256, 4),
    ("llamagen_xxl_384", "llamagen_256", 384, 1_410_972_672, 384_350_100, 256, 8),
    ("llamagen_3b_384", "llamagen_256", 384, 3_096_659_200, 384_350_100, 256, 16),
    ("open_magvit2_b_256", "open_magvit2_256", 256, 343_570_432, 384_350_100, 768, 1),
    ("open_magvit2_l_256", "open_magvit2_256", 256, 804_362_240, 384_350_100, 768, 1),
    ("open_magvit2_xl_256", "open_magvit2_256", 256, 1_486_679_040, 448_408_450, 768, 1),
    ("biggan_128", "biggan_128", 128, 70_433_988, 675_840_000, 2048, 8),
    ("biggan_256", "biggan_128", 256, 82_097_604, 675_840_000, 2048, 16),
    ("biggan_512", "biggan_128", 512, 82_296_804, 675_840_000, 2048, 32),
    ("biggan_deep_128", "biggan_deep_128", 128, 50_244_484, 675_840_000, 2048, 8),
    ("biggan_deep_256", "biggan_deep_128", 256, 55_736_708, 675_840_000, 2048, 16),
    ("biggan_deep_512", "biggan_deep_128", 512, 56_019_780, 675_840_000, 2048, 32),
    ("maskgit_256", "maskgit_256", 256, 172_456_960, 384_350_100, 256, 1),
    ("maskgit_512", "maskgit_256", 512, 173_046_784, 384_350_100, 256, 1),
    ("projected_gan_256", "projected_gan_256", 256, 110_527_689, 10_000_000, 64, 1),
    ("projected_gan_128", "projected_gan_256", 128, 109_648_264, 10_000_000, 64, 1),
    ("lfq_256", "lfq_256", 256, 115_127_829, 345_915_090, 256, 1),
    ("lfq_128", "lfq_256", 128, 112_021_653, 448_408_450, 256, 1),
    ("multi_scale_vq_256", "multi_scale_vq_256", 256, 108_948_355, 51_246_680, 128, 1),
    ("multi_scale_vq_512", "multi_scale_vq_256", 512, 108_948_355, 51_246_680, 128, 1),
    ("kl_8_256", "kl_8_256", 256, 83_653_863, 12_000_000, 24, 2),
    ("kl_16_256", "kl_8_256", 256, 69_610_963, 12_000_000, 24, 2),
    ("vq_16_256", "vq_16_256", 256, 71_883_403, 51_246_680, 128, 1),
    ("vq_8_256", "vq_16_256", 256, 70_109_835, 51_246_680, 128, 1),
    ("dit_xl_256", "dit_256", 256, 674_834_720, 1_792_000_000, 256, 1),
    ("dit_s_256", "dit_256", 256, 32_865_056, 102_400_000, 256, 1),
    ("dit_b_256", "dit_256", 256, 130_315_808, 102_400_000, 256, 1),
    ("dit_l_256", "dit_256", 256, 457_840_672, 102_400_000, 256, 1),
    ("dit_xl_512", "dit_256", 512, 674_834_720, 768_000_000, 256, 4),
    ("fitv2_xl_256", "fitv2_256", 256, 671_045_776, 512_000_000, 256, 1),
    ("fitv2_3b_256", "fitv2_256", 256, 2_971_928_080, 256_000_000, 256, 4),
    ("adm_256", "adm_256", 256, 553_838_086, 506_880_000, 256, 8),
    ("adm_64", "adm_256", 64, 295_904_454, 1_105_920_000, 2048, 8),
    ("adm_128", "adm_256", 128, 421_529_606, 1_116_160_000, 256, 8),
    ("adm_512", "adm_256", 512, 558_997_638, 496_640_000, 256, 8),
    ("adm_classifier_256", "adm_classifier_256", 256, 54_096_360, 76_800_000, 256, 1),
    ("adm_classifier_64", "adm_classifier_256", 64, 65_438_568, 76_800_000, 256, 1),
    ("adm_classifier_128", "adm_classifier_256", 128, 42_568_040, 76_800_000, 256, 1),
    ("adm_classifier_512", "adm_classifier_256", 512, 54_448_360, 76_800_000, 256, 1),
    ("adm_upsampler_64_256", "adm_upsampler_64_256", 256, 311_795_910, 128_000_000, 256, 8),
    ("adm_upsampler_128_512", "adm_upsampler_64_256", 512, 308_835_270, 268_800_000, 256, 8),
    ("edm_64", "edm_64", 64, 295_899_267, 2_500_000_000, 4096, 1),
    ("edm2_s_64", "edm2_64", 64, 280_209_381, 1_073_741_824, 2048, 8),
    ("edm2_s_512", "edm2_512", 512, 280_212_837, 2_147_483_648, 2048, 8),
    ("edm2_l_512", "edm2_512", 512, 777_498_085, 1_879_048_192, 2048, 8),
    ("edm2_l_64", "edm2_64", 64, 777_492_325, 1_073_741_824, 2048, 8),
    ("edm2_m_512", "edm2_512", 512, 497_807_781, 2_147_483_648, 2048, 8),
    ("edm2_m_64", "edm2_64", 64, 497_803_173, 2_147_483_648, 2048, 8),
    ("edm2_xl_512", "edm2_512", 512, 1_119_283_749, 1_342_177_280, 2048, 8),
    ("edm2_xl_64", "edm2_64", 64, 1_119_276_837, 671_088_640, 2048, 8),
    ("edm2_xs_512", "edm2_512", 512, 124_713_253, 2_147_483_648, 2048, 8),
    ("edm2_xs_64", "edm2_64", 64, 124_710_949, 1_073_741_824, 2048, 8),
    ("edm2_xxl_512", "edm2_512", 512, 1_523_164_773, 939_524_096, 2048, 8),
    ("edm2_xxs_512", "edm2_512", 512, 31_309_029, 2_147_483_648, 2048, 8),
    ("u_vit_m_64", "u_vit_64", 64, 130_940_292, 307_200_000, 1024, 2),
    ("u_vit_l_64", "u_vit_64", 64, 286_827_652, 307_200_000, 1024, 4),
    ("u_vit_h_256", "u_vit_256", 256, 500_832_016, 512_000_000, 1024, 8),
    ("u_vit_l_256", "u_vit_256", 256, 286_763_172, 307_200_000, 1024, 4),
    ("u_vit_h_512", "u_vit_256", 512, 500_942_656, 512_000_000, 1024, 8),
    ("u_vit_l_512", "u_vit_256", 512, 286_861_524, 512_000_000, 1024, 4),
    ("dimr_xl_256", "dimr_256", 256, 505_046_408, 1_024_000_000, 1024, 8),
    ("dimr_g_256", "dimr_256", 256, 1_056_352_904, 1_024_000_000, 1024, 16),
    ("rin_64", "rin_64", 64, 157_780_160, 153_600_000, 1024, 1),
    ("rin_128", "rin_64", 128, 395_403_968, 153_600_000, 1024, 2),
    ("rin_256", "rin_64", 256, 395_928_256, 153_600_000, 1024, 4),
    ("compact_unet_256", "compact_unet_256", 256, 370_151_684, 307_200_000, 1024, 4),
    ("sit_xl_256", "sit_256", 256, 674_816_272, 1_792_000_000, 256, 1),
    ("sit_s_256", "sit_256", 256, 32_858_896, 102_400_000, 256, 1),
    ("sit_b_256", "sit_256", 256, 130_303_504, 102_400_000, 256, 1),
    ("sit_l_256", "sit_256", 256, 457_824_272, 102_400_000, 256, 1),
    ("sit_xl_512", "sit_256", 512, 674_816_272, 768_000_000, 256, 4),
    ("sagan_128", "sagan_128", 128, 42_017_412, 256_000_000, 256, 2),
    ("wgan_gp_128", "wgan_gp_128", 128, 15_273_283, 32_000_000, 64, 1),
    ("dcgan_ttur_64", "dcgan_ttur_64", 64, 3_648_707, 6_405_835, 64, 1),
    ("am_gan_128", "am_gan_128", 128, 30_729_411, 100_000_000, 100, 1),
    ("fsq_256", "fsq_256", 256, 69_425_287, 51_246_680, 128, 1),
    ("rvq_16_256", "rvq_16_256", 256, 104_270_211, 12_811_670, 128, 1),
    ("resgen_256", "resgen_256", 256, 573_345_280, 512_466_800, 1024, 4),
    ("rcg_representation_256", "rcg_representation_256", 256, 63_233_280, 256_233_400, 512, 1),
]

# Parameters as published, and where: of the network that PUBLISHED counts (a GAN's generator). A size without an entry has none
# at hand: the source does not tell (SAGAN, BigGAN, WGAN-GP, Projected GAN, most tokenizers, classifiers, MAR-L at 512 pixels),
# counts more than the network (MaskGIT's 227 M hold its tokenizer), or is of another size than ours (RIN).
PAPERS = (
    # arXiv 2503.07197, tables 2 and 3
    dict(emigm_xs_256="69M", emigm_s_256="97M", emigm_b_256="208M", emigm_l_256="478M", emigm_h_256="942M")
    | dict(emigm_xs_512="104M", emigm_s_512="132M", emigm_b_512="244M", emigm_l_512="478M")
    # README of LTH14/mar
    | dict(mar_b_256="208M", mar_l_256="479M", mar_h_256="943M")
    # README of FoundationVision/VAR
    | dict(var_d16_256="310M", var_d20_256="600M", var_d24_256="1.0B", var_d30_256="2.0B", var_d36_512="2.3B")
    # README of FoundationVision/LlamaGen
    | dict(llamagen_b_256="111M", llamagen_b_384="111M", llamagen_l_256="343M", llamagen_l_384="343M")
    | dict(llamagen_xl_384="775M", llamagen_xxl_384="1.4B", llamagen_3b_384="3.1B", vq_16_256="72M", vq_8_256="70M")
    # README of TencentARC/SEED-Voken
    | dict(open_magvit2_b_256="343M", open_magvit2_l_256="804M", open_magvit2_xl_256="1.5B")
    # README of huggingface/pytorch-pretrained-BigGAN, of the official networks
    | dict(biggan_deep_128="50.4M", biggan_deep_256="55.9M", biggan_deep_512="56.2M")
    # arXiv 2212.09748, table 4 (and 2401.08740: the same networks)
    | dict(dit_s_256="33M", dit_b_256="130M", dit_l_256="458M", dit_xl_256="675M", dit_xl_512="675M")
    | dict(sit_s_256="33M", sit_b_256="130M", sit_l_256="458M", sit_xl_256="675M", sit_xl_512="675M")
    # README of whlzy/FiT
    | dict(fitv2_xl_256="671M", fitv2_3b_256="3B")
    # arXiv 2105.05233, appendix on hyperparameters
    | dict(adm_64="296M", adm_128="422M", adm_256="554M", adm_512="559M")
    | dict(adm_upsampler_64_256="312M", adm_upsampler_128_512="309M")
    # arXiv 2206.00364, appendix F
    | dict(edm_64="295.9M")
    # arXiv 2312.02696, table 2
    | dict(edm2_xs_512="125M", edm2_s_512="280M", edm2_m_512="498M", edm2_l_512="777M", edm2_xl_512="1119M")
    | dict(edm2_xxl_512="1523M", edm2_s_64="280M", edm2_m_64="498M", edm2_l_64="777M", edm2_xl_64="1119M")
    # arXiv 2209.12152, table 1
    | dict(u_vit_m_64="131M", u_vit_l_64="287M", u_vit_l_256="287M", u_vit_l_512="287M", u_vit_h_256="501M", u_vit_h_512="501M")
    # README of qihao067/DiMR
    | dict(dimr_xl_256="505M", dimr_g_256="1.06B")
    # arXiv 2412.09619, abstract
    | dict(compact_unet_256="372M")
    # arXiv 2412.10208, table 1
    | dict(resgen_256="574M")
)


def agrees(count: int, published: str) -> bool:
    """Whether a number of parameters is the published one: within 1 %, or its digits when rounded or cut off."""
    unit = {"M": 10**6, "B": 10**9}[published[-1]]
    digits = len(published[:-1].partition(".")[2])
    value = float(published[:-1])
    scaled = count / unit
    cut = math.floor(scaled * 10**digits) / 10**digits
    return abs(scaled - value) <= 0.01 * value or round(scaled, digits) == value or cut == value
