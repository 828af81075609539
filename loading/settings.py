"""How wide samples and volumes become 8 bits: constants of train_vqvae.py and of `python dataset.py`."""
NIFTI_AXIS = 2            # how NIfTI volumes are cut into slices: 0 sagittal, 1 coronal, 2 axial
NIFTI_SCALE = "volume"    # intensities are scaled to 8 bits over each "slice", each "volume" or the whole "folder" ...
NIFTI_LOW = 0.5           # ... from this percentile, which becomes black ...
NIFTI_HIGH = 99.5         # ... to this one, which becomes white
VALUE_RANGE = "auto"      # black and white of files of more than 8 bits: "0 4095", or "auto": those percentiles of all
MAX_UNREADABLE = 0.01     # share of a folder's files that may be left out as they cannot be decoded
