"use strict";
// Goes where the link leads that looks once more; the page stays while that takes its time.
const patient = document.getElementById("patient");
if (patient) location.replace(patient.href);
