"""Models built from Specs: torchvision, timm, transformers, own nets, files, objects from Python."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "model",
    {
        "artifact": "decoct.models.saved:Saved",
        "stored": "decoct.models.stored:Stored",
        "estimator": "decoct.models.estimator_file:EstimatorFile",
        "onnx": "decoct.models.onnx_model:OnnxFile",
        "http": "decoct.models.remote:Remote",
        "black_box": "decoct.models.black_box:BlackBox",
        "torchvision": "decoct.models.torchvision:Torchvision",
        "timm": "decoct.models.timm:Timm",
        "transformers": "decoct.models.transformers:Transformers",
        "small_resnet": "decoct.models.small_resnet:SmallResNet",
        "small_gpt": "decoct.models.small_gpt:SmallGPT",
        "small_mobilenet": "decoct.models.small_mobilenet:SmallMobileNet",
        "small_vit": "decoct.models.small_vit:SmallViT",
        "small_unet": "decoct.models.small_unet:SmallUNet",
        "small_detector": "decoct.models.small_detector:SmallDetector",
        "faster_rcnn": "decoct.models.faster_rcnn:FasterRCNN",
        "mlp": "decoct.models.mlp:MLP",
        "bilstm": "decoct.models.bilstm:BiLSTM",
        "exits": "decoct.models.exits:WithExits",
        "file": "decoct.models.file:File",
        "given": "decoct.models.given:GivenModel",
    },
)
