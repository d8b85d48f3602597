"use strict";
setTimeout(() => location.reload(), 1000);
