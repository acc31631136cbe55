"""Steps: each takes artifacts by role and returns a new one."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "step",
    {
        "train": "decoct.steps.train:Train",
        "train_classes": "decoct.steps.train_classes:TrainClasses",
        "train_estimator": "decoct.steps.train_estimator:TrainEstimator",
        "label": "decoct.steps.labelling.step:Label",
        "distill": "decoct.steps.distill:Distill",
        "adversarial_distill": "decoct.steps.adversarial_distill:AdversarialDistill",
        "robustness": "decoct.steps.shipping.robustness:Robustness",
        "ema_distill": "decoct.steps.ema_distill:EMADistill",
        "assistants": "decoct.steps.assistants:Assistants",
        "born_again": "decoct.steps.born_again:BornAgain",
        "meta_distill": "decoct.steps.meta_distill:MetaDistill",
        "mutual": "decoct.steps.mutual:MutualLearning",
        "part": "decoct.steps.part:Part",
        "self_distill": "decoct.steps.self_distill:SelfDistill",
        "choose_exit": "decoct.steps.choose_exit:ChooseExit",
        "prune": "decoct.steps.compressing.prune:Prune",
        "rewrite": "decoct.steps.compressing.rewrite:Rewrite",
        "share": "decoct.steps.compressing.share:Share",
        "qat": "decoct.steps.compressing.qat:QAT",
        "search": "decoct.steps.search:Search",
        "quantize": "decoct.steps.shipping.quantize:Quantize",
        "export": "decoct.steps.shipping.export:Export",
        "benchmark": "decoct.steps.shipping.benchmark:Benchmark",
    },
)
