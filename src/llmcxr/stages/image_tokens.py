"""The stages of image tokens: the clinical network, the image tokenizer, and every image written as codes (section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from llmcxr.foundation.artifacts import read_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.workflow import Stage
from llmcxr.image_tokens.classifier import train_classifier
from llmcxr.image_tokens.clinical_features import (
    ClinicalFeatures,
    is_repository,
    load_features,
    published_features,
    xrv_package,
)
from llmcxr.image_tokens.codes import encode_images, write_codes
from llmcxr.image_tokens.encoding import encode_files
from llmcxr.image_tokens.losses import lpips_package
from llmcxr.image_tokens.settings import ImageTokenizerSettings, without_clinical
from llmcxr.image_tokens.tokenizer import ImageTokenizer
from llmcxr.image_tokens.training import train_image_tokenizer
from llmcxr.image_tokens.watching import tensorboard
from llmcxr.model.folder import LEARNED_LATER
from llmcxr.sources.registry import read_studies
from llmcxr.stages.context import Context, start_files
from llmcxr.studies.study import Study, sided_labels

ENCODED = "encoded"  # folder and stage of `llmcxr encode`, in the folder of a run or its own


def clinical_features_stage(context: Context) -> Stage:
    """The network of the clinical feature loss, trained on this run's labels or published."""
    settings, folder = context.recipe.clinical_features, context.folder / "clinical_features"

    def run() -> str | None:
        if settings.weights != "train":
            context.processes.on_main(lambda: published_features(settings.weights).save(folder))
            return None
        if not context.findings:
            return "no finding is known both present and absent; set clinical_features.weights to have one all the same"
        studies, images = context.of_split("train")
        torch.manual_seed(context.recipe.seed)
        names, labels = sided_labels(studies, context.findings)
        features = ClinicalFeatures(names, settings.resolution)
        if context.start and (earlier := ImageTokenizer.from_pretrained(context.start.image_tokenizer).clinical):
            features.take_weights(earlier)
        train_classifier(
            features,
            images,
            labels,
            settings.training,
            context.recipe.seed,
            folder,
            "clinical network",
            context.processes,
        )
        return None

    def check() -> None:
        if is_repository(settings.weights):
            published_features(settings.weights)
        elif settings.weights != "train":
            xrv_package(settings.weights)

    return Stage(
        "clinical_features",
        "a network that knows findings, so that image tokens keep what matters clinically",
        run,
        settings=(settings, context.recipe.seed, context.recipe.start is not None),
        after=("studies",),
        outputs=("clinical_features",),
        reads=(*settings.files(), *start_files(context)),
        check=check,
        everywhere=True,
    )


def codebook_in_training(folder: Path) -> str:
    """How the codebook of an image tokenizer in `folder` did at the end of its training; empty where nothing is known of it."""
    path = folder / "curves.json"
    last = read_json(path)[-1] if path.exists() else {}
    if "restarts" not in last:  # it was given, or trained by an earlier version
        return ""
    return f"{last['codebook_use']:.1%} in use, perplexity {last['perplexity']:,.0f}, {last['restarts']:,.0f} restarts"


def _check_findings(settings: ImageTokenizerSettings, findings: Sequence[str]) -> None:
    """`UserError` where codes are to say what a network without findings (a Dinov2) sees."""
    wanted = {
        "image_tokenizer.architecture.clinical_input=false": settings.architecture.clinical_input,
        "image_tokenizer.reading_weight=0": settings.reading_weight > 0,
    }
    if not findings and any(wanted.values()):
        raise UserError(
            "the network of clinical_features.weights knows no findings that codes could say or take in. Set "
            f"{' and '.join(name for name, asked in wanted.items() if asked)}, or another network."
        )


def image_tokenizer_stage(context: Context) -> Stage:
    """The VQ-GAN, trained or given."""
    settings, folder = context.recipe.image_tokenizer, context.folder / "image_tokenizer"

    def run() -> None:
        if settings.pretrained is not None:
            taken = ImageTokenizer.from_pretrained(settings.pretrained)
            context.processes.on_main(lambda: taken.save_pretrained(folder))
            return
        source, features, own = context.folder / "clinical_features", None, settings
        if (source / "model.safetensors").exists():
            features = load_features(source)
            _check_findings(settings, features.findings)
        else:
            own = without_clinical(settings)
            if context.processes.main:
                print("    no clinical network: codes are learned from pixels alone")
        begin = context.start.image_tokenizer if context.start else settings.start
        start = None if begin is None else ImageTokenizer.from_pretrained(begin)
        _, images = context.of_split("train")
        _, shown = context.of_split("validate")
        train_image_tokenizer(own, features, images, context.recipe.seed, folder, context.processes, start, shown=shown)
        if context.processes.main:
            print(f"    codebook: {codebook_in_training(folder)}")

    def check() -> None:
        if settings.given is not None:
            ImageTokenizer.from_pretrained(settings.given)
        weights = context.recipe.clinical_features.weights
        if settings.pretrained is None and is_repository(weights):
            _check_findings(settings, published_features(weights).findings)
        if settings.pretrained is None and settings.perceptual != "clinical":
            lpips_package(settings.perceptual)
        if settings.pretrained is None and settings.pictures_every:
            tensorboard()

    given = (Path(settings.given),) if settings.given and Path(settings.given).is_dir() else ()
    return Stage(
        "image_tokenizer",
        "learns to write a radiograph as a small grid of codes, and to paint it again from them",
        run,
        settings=(settings, context.recipe.seed, context.recipe.start is not None),
        after=("studies", "clinical_features"),
        outputs=("image_tokenizer",),
        reads=(*settings.files(), *given, *start_files(context)),
        check=check,
        everywhere=True,
    )


def codes_stage(context: Context) -> Stage:
    """Every image as codes, with the fingerprint of the tokenizer that made them."""

    def run() -> None:
        tokenizer = context.image_tokenizer
        codes = encode_images(tokenizer, context.pixels, context.device)
        ids = [s.image_id for s in context.studies]
        write_codes(context.folder / "codes" / "codes.parquet", ids, codes, tokenizer.fingerprint)

    given = context.given
    return Stage(
        "codes",
        "every radiograph written as image tokens, once",
        run,
        after=("image_tokenizer",) if given is None else ("studies",),
        outputs=("codes",),
        reads=() if given is None else (given, given / "image_tokenizer"),
        unread=LEARNED_LATER,
    )


def encode_stage(context: Context) -> Stage:
    """`llmcxr encode`, a stage of no run: every file of the source to codes, by a tokenizer that is there."""
    settings, folder, source = context.recipe.image_tokenizer, context.folder, context.source
    name = settings.pretrained or folder / "image_tokenizer"

    def run() -> None:
        codec, found = ImageTokenizer.from_pretrained(name), list[Study]()

        def read() -> None:
            found.extend(read_studies(source, context.recipe.source, folder, codec.image_size).studies)

        context.processes.on_main(read)  # before the others: a source may draw its images
        if not context.processes.main:
            read()
        ids, paths = [s.image_id for s in found], [folder / s.image_path for s in found]  # an absolute path stays
        codec.to(context.device)
        encoded, unreadable = encode_files(codec, ids, paths, folder / ENCODED, context.processes, context.geometry)
        if context.processes.main:
            print(f"    {encoded:,} images encoded, {unreadable:,} files unreadable ({ENCODED}/unreadable.json)")

    def check() -> None:
        source.check()
        ImageTokenizer.from_pretrained(name)

    return Stage(
        ENCODED,
        "every file of the source written as image tokens",
        run,
        settings=(source.fingerprint(), context.recipe.source.cohort, context.geometry, str(name)),
        outputs=(ENCODED,),
        reads=(Path(name),) if Path(name).is_dir() else (),
        check=check,
        everywhere=True,
    )
