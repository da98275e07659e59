"""The papers behind a model, as BibTeX: what its classes name in their docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

_ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv.

    Attributes:
        key: Name of the entry.
        authors: As BibTeX takes them.
        title: With its capitals.
        year: Of its first version.
    """

    key: str
    authors: str
    title: str
    year: int

    def bibtex(self, arxiv: str) -> str:
        """Its entry.

        Args:
            arxiv: Its number.
        """
        return (
            f"@misc{{{self.key},\n  author = {{{self.authors}}},\n  title = {{{{{self.title}}}}},\n  year = {{{self.year}}},\n"
            f"  eprint = {{{arxiv}}},\n  archivePrefix = {{arXiv}}\n}}"
        )


PAPERS = {
    "1511.06434": Paper(
        "radford2015dcgan",
        "Radford, Alec and Metz, Luke and Chintala, Soumith",
        "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
        2015,
    ),
    "1703.02000": Paper(
        "zhou2017amgan",
        "Zhou, Zhiming and Cai, Han and Rong, Shu and Song, Yuxuan and Ren, Kan and Zhang, Weinan and Yu, Yong and Wang, Jun",
        "Activation Maximization Generative Adversarial Nets",
        2017,
    ),
    "1805.08318": Paper(
        "zhang2018sagan",
        "Zhang, Han and Goodfellow, Ian and Metaxas, Dimitris and Odena, Augustus",
        "Self-Attention Generative Adversarial Networks",
        2018,
    ),
    "1809.11096": Paper(
        "brock2018biggan",
        "Brock, Andrew and Donahue, Jeff and Simonyan, Karen",
        "Large Scale GAN Training for High Fidelity Natural Image Synthesis",
        2018,
    ),
    "2006.11239": Paper(
        "ho2020ddpm", "Ho, Jonathan and Jain, Ajay and Abbeel, Pieter", "Denoising Diffusion Probabilistic Models", 2020
    ),
    "2011.13456": Paper(
        "song2020score",
        "Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano and Poole, Ben",
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        2020,
    ),
    "2012.09841": Paper(
        "esser2020vqgan",
        'Esser, Patrick and Rombach, Robin and Ommer, Bj{\\"o}rn',
        "Taming Transformers for High-Resolution Image Synthesis",
        2020,
    ),
    "2101.04775": Paper(
        "liu2021fastgan",
        "Liu, Bingchen and Zhu, Yizhe and Song, Kunpeng and Elgammal, Ahmed",
        "Towards Faster and Stabilized GAN Training for High-fidelity Few-shot Image Synthesis",
        2021,
    ),
    "2102.09672": Paper(
        "nichol2021improved", "Nichol, Alex and Dhariwal, Prafulla", "Improved Denoising Diffusion Probabilistic Models", 2021
    ),
    "2105.05233": Paper(
        "dhariwal2021adm", "Dhariwal, Prafulla and Nichol, Alex", "Diffusion Models Beat GANs on Image Synthesis", 2021
    ),
    "2106.15282": Paper(
        "ho2021cascaded",
        "Ho, Jonathan and Saharia, Chitwan and Chan, William and Fleet, David J. and Norouzi, Mohammad and Salimans, Tim",
        "Cascaded Diffusion Models for High Fidelity Image Generation",
        2021,
    ),
    "2107.03312": Paper(
        "zeghidour2021soundstream",
        "Zeghidour, Neil and Luebs, Alejandro and Omran, Ahmed and Skoglund, Jan and Tagliasacchi, Marco",
        "SoundStream: An End-to-End Neural Audio Codec",
        2021,
    ),
    "2111.01007": Paper(
        "sauer2021projected",
        'Sauer, Axel and Chitta, Kashyap and M{\\"u}ller, Jens and Geiger, Andreas',
        "Projected GANs Converge Faster",
        2021,
    ),
    "2112.10752": Paper(
        "rombach2021latent",
        'Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bj{\\"o}rn',
        "High-Resolution Image Synthesis with Latent Diffusion Models",
        2021,
    ),
    "2202.04200": Paper(
        "chang2022maskgit",
        "Chang, Huiwen and Zhang, Han and Jiang, Lu and Liu, Ce and Freeman, William T.",
        "MaskGIT: Masked Generative Image Transformer",
        2022,
    ),
    "2203.01941": Paper(
        "lee2022residual",
        "Lee, Doyup and Kim, Chiheon and Kim, Saehoon and Cho, Minsu and Han, Wook-Shin",
        "Autoregressive Image Generation using Residual Quantization",
        2022,
    ),
    "2206.00364": Paper(
        "karras2022edm",
        "Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022,
    ),
    "2209.12152": Paper(
        "bao2022uvit",
        "Bao, Fan and Nie, Shen and Xue, Kaiwen and Cao, Yue and Li, Chongxuan and Su, Hang and Zhu, Jun",
        "All are Worth Words: A ViT Backbone for Diffusion Models",
        2022,
    ),
    "2211.09117": Paper(
        "li2022mage",
        "Li, Tianhong and Chang, Huiwen and Mishra, Shlok Kumar and Zhang, Han and Katabi, Dina and Krishnan, Dilip",
        "MAGE: MAsked Generative Encoder to Unify Representation Learning and Image Synthesis",
        2022,
    ),
    "2212.09748": Paper(
        "peebles2022dit", "Peebles, William and Xie, Saining", "Scalable Diffusion Models with Transformers", 2022
    ),
    "2212.11972": Paper(
        "jabri2022rin",
        "Jabri, Allan and Fleet, David and Chen, Ting",
        "Scalable Adaptive Computation for Iterative Generation",
        2022,
    ),
    "2309.15505": Paper(
        "mentzer2023fsq",
        "Mentzer, Fabian and Minnen, David and Agustsson, Eirikur and Tschannen, Michael",
        "Finite Scalar Quantization: VQ-VAE Made Simple",
        2023,
    ),
    "2312.02696": Paper(
        "karras2023edm2",
        "Karras, Tero and Aittala, Miika and Lehtinen, Jaakko and Hellsten, Janne and Aila, Timo and Laine, Samuli",
        "Analyzing and Improving the Training Dynamics of Diffusion Models",
        2023,
    ),
    "2312.03701": Paper(
        "li2023rcg",
        "Li, Tianhong and Katabi, Dina and He, Kaiming",
        "Return of Unconditional Generation: A Self-supervised Representation Generation Method",
        2023,
    ),
    "2401.08740": Paper(
        "ma2024sit",
        "Ma, Nanye and Goldstein, Mark and Albergo, Michael S. and Boffi, Nicholas M. and Vanden-Eijnden, Eric and Xie, Saining",
        "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
        2024,
    ),
    "2402.12376": Paper(
        "lu2024fit",
        "Lu, Zeyu and Wang, Zidong and Huang, Di and Wu, Chengyue and Liu, Xihui and Ouyang, Wanli and Bai, Lei",
        "FiT: Flexible Vision Transformer for Diffusion Model",
        2024,
    ),
    "2404.02905": Paper(
        "tian2024var",
        "Tian, Keyu and Jiang, Yi and Yuan, Zehuan and Peng, Bingyue and Wang, Liwei",
        "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction",
        2024,
    ),
    "2404.04057": Paper(
        "zhou2024sid",
        "Zhou, Mingyuan and Zheng, Huangjie and Wang, Zhendong and Yin, Mingzhang and Huang, Hai",
        "Score identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion Models for One-Step Generation",
        2024,
    ),
    "2406.06525": Paper(
        "sun2024llamagen",
        "Sun, Peize and Jiang, Yi and Chen, Shoufa and Zhang, Shilong and Peng, Bingyue and Luo, Ping and Yuan, Zehuan",
        "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
        2024,
    ),
    "2406.09416": Paper(
        "liu2024dimr",
        "Liu, Qihao and Zeng, Zhanpeng and He, Ju and Yu, Qihang and Shen, Xiaohui and Chen, Liang-Chieh",
        "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models",
        2024,
    ),
    "2406.11838": Paper(
        "li2024mar",
        "Li, Tianhong and Tian, Yonglong and Li, He and Deng, Mingyang and He, Kaiming",
        "Autoregressive Image Generation without Vector Quantization",
        2024,
    ),
    "2409.04410": Paper(
        "luo2024openmagvit2",
        "Luo, Zhuoyan and Shi, Fengyuan and Ge, Yixiao and Yang, Yujiu and Wang, Limin and Shan, Ying",
        "Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-regressive Visual Generation",
        2024,
    ),
    "2410.13925": Paper(
        "wang2024fitv2",
        "Wang, ZiDong and Lu, Zeyu and Huang, Di and Zhou, Cai and Ouyang, Wanli and Bai, Lei",
        "FiTv2: Scalable and Improved Flexible Vision Transformer for Diffusion Model",
        2024,
    ),
    "2412.09619": Paper(
        "hu2024snapgen",
        "Hu, Dongting and others",
        "SnapGen: Taming High-Resolution Text-to-Image Models for Mobile Devices with Efficient Architectures and Training",
        2024,
    ),
    "2412.10208": Paper(
        "kim2024resgen",
        "Kim, Jaehyeon and Moon, Taehong and Lee, Keon and Cho, Jaewoong",
        "Efficient Generative Modeling with Residual Vector Quantization-Based Tokens",
        2024,
    ),
    "2503.07197": Paper(
        "you2025emigm",
        "You, Zebin and Ou, Jingyang and Zhang, Xiaolu and Hu, Jun and Zhou, Jun and Li, Chongxuan",
        "Effective and Efficient Masked Image Generation Models",
        2025,
    ),
}
OF_OTHERS = {"AutoencoderKL": "2112.10752"}
"""Papers of classes that are not ours."""


def papers_of(classes: Iterable[type]) -> dict[str, Paper]:
    """Papers by number that classes name in the first paragraph of their docstrings or their modules', in that order, each once.

    Args:
        classes: Networks, formulations, pipelines and objectives.
    """
    found: dict[str, None] = {}
    for kind in classes:
        texts = [kind.__doc__, getattr(sys.modules.get(kind.__module__), "__doc__", None)]
        if kind.__name__ in OF_OTHERS:
            texts = [OF_OTHERS[kind.__name__]]
        for text in texts:
            found |= dict.fromkeys(_ARXIV.findall(inspect.cleandoc(text or "").split("\n\n")[0]))
    return {number: PAPERS[number] for number in found if number in PAPERS}
