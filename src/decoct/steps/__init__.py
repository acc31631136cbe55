"""Steps: each takes artifacts by role and returns a new one."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "step",
    {
        "train": "decoct.steps.train:Train",
        "train_classes": "decoct.steps.train_classes:TrainClasses",
        "train_estimator": "decoct.steps.train_estimator:TrainEstimator",
        "label": "decoct.steps.label:Label",
        "distill": "decoct.steps.distill:Distill",
        "adversarial_distill": "decoct.steps.adversarial_distill:AdversarialDistill",
        "robustness": "decoct.steps.robustness:Robustness",
        "ema_distill": "decoct.steps.ema_distill:EMADistill",
        "assistants": "decoct.steps.assistants:Assistants",
        "born_again": "decoct.steps.born_again:BornAgain",
        "meta_distill": "decoct.steps.meta_distill:MetaDistill",
        "mutual": "decoct.steps.mutual:MutualLearning",
        "part": "decoct.steps.part:Part",
        "self_distill": "decoct.steps.self_distill:SelfDistill",
        "choose_exit": "decoct.steps.choose_exit:ChooseExit",
        "prune": "decoct.steps.prune:Prune",
        "rewrite": "decoct.steps.rewrite:Rewrite",
        "share": "decoct.steps.share:Share",
        "qat": "decoct.steps.qat:QAT",
        "search": "decoct.steps.search:Search",
        "quantize": "decoct.steps.quantize:Quantize",
        "export": "decoct.steps.export:Export",
        "benchmark": "decoct.steps.benchmark:Benchmark",
    },
)
