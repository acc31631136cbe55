"""Data: named splits of samples with content keys, and Sources that draw batches from them."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "data set",
    {
        "digits": "decoct.data.digits:Digits",
        "fashion_mnist": "decoct.data.fashion_mnist:FashionMNIST",
        "cifar10": "decoct.data.cifar10:CIFAR10",
        "image_folder": "decoct.data.image_folder:ImageFolder",
        "image_table": "decoct.data.image_table:ImageTable",
        "webdataset": "decoct.data.webdataset:WebDataset",
        "image_masks": "decoct.data.image_masks:ImageMasks",
        "voc": "decoct.data.voc:VOC",
        "sst2": "decoct.data.sst2:SST2",
        "tsv": "decoct.data.tsv:TSV",
        "text_files": "decoct.data.text_files:TextFiles",
        "conll": "decoct.data.conll:CoNLL",
        "credit_default": "decoct.data.credit_default:CreditDefault",
        "california_housing": "decoct.data.california_housing:CaliforniaHousing",
        "csv": "decoct.data.csv:CSV",
        "parquet": "decoct.data.parquet_tables:ParquetTables",
        "mnist": "decoct.data.mnist:MNIST",
        "several": "decoct.data.several:Several",
        "text": "decoct.data.text:Text",
        "given": "decoct.data.given:GivenData",
    },
)
